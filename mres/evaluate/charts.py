"""Charts of a run as inline SVG whose colours are the page's CSS variables, so that they follow light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from mres.records import GRANULARITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = Mapping[str, Any]

# matplotlib wants a colour where the page has a variable: each of these is replaced in the finished SVG.
_VARIABLES = {
    "#0a0b01": "--ink",
    "#0a0b02": "--muted",
    "#0a0b03": "--line",
    "#0a0b11": "--object",
    "#0a0b12": "--part",
    "#0a0b13": "--series-1",
    "#0a0b14": "--series-2",
    "#0a0b15": "--series-3",
}
_COLOURS = {variable: colour for colour, variable in _VARIABLES.items()}
_INK, _MUTED, _GRID = (_COLOURS[f"--{name}"] for name in ("ink", "muted", "line"))
_SERIES = {
    "loss": _COLOURS["--series-1"],
    "loss_bce": _COLOURS["--series-2"],
    "loss_dice": _COLOURS["--series-3"],
    "object": _COLOURS["--object"],
    "part": _COLOURS["--part"],
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.4,
}
# Width and height in inches. The page has two wide or three narrow charts in a row and scales both by the same factor.
_WIDE, _NARROW = (5.6, 2.7), (3.7, 2.6)
_MARGINS = (0.68, 0.46, 0.1, 0.32)  # left, bottom, right, top: the same everywhere, so that charts line up
_MOST_POINTS = 400
_BINS = np.linspace(0, 1, 21)


@contextmanager
def _chart(name: str, size: tuple[float, float] = _WIDE) -> Iterator[tuple[Axes, StringIO]]:
    """Axes to draw on and, once left, the page-ready SVG; `name` keeps the ids of several charts apart."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        left, bottom, right, top = (part / size[i % 2] for i, part in enumerate(_MARGINS))
        yield figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top)), out
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})


def _page_ready(svg: str) -> str:
    """The bare <svg> element: no prologue, namespaces or metadata (they name hosts), colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", svg, count=1)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def loss_chart(metrics: Sequence[Line]) -> str | None:
    """Total loss and its terms over steps; None where there is nothing to show."""
    curves = {"loss": "total", "loss_bce": "BCE", "loss_dice": "Dice"}
    return _curves("loss", metrics, curves, label="loss", raw="loss")


def rate_chart(metrics: Sequence[Line]) -> str | None:
    """The learning rate over steps."""
    return _curves("rate", metrics, {"lr": "learning rate"}, label="learning rate")


def norm_chart(metrics: Sequence[Line]) -> str | None:
    """The gradient norm (before clipping) over steps."""
    return _curves("norm", metrics, {"grad_norm": "norm"}, label="gradient norm", raw="grad_norm")


def speed_chart(metrics: Sequence[Line]) -> str | None:
    """Expressions a second over steps."""
    return _curves(
        "speed", metrics, {"expressions_per_s": "expressions"}, label="expressions a second", raw="expressions_per_s"
    )


def _curves(name: str, metrics: Sequence[Line], curves: Mapping[str, str], *, label: str, raw: str = "") -> str | None:
    """Lines over steps; the one called `raw` is shown as measured, thin, behind its running mean."""
    with _chart(name) as (axes, out):
        for key, text in curves.items():
            steps_N, values_N = _series(metrics, key)
            if not len(steps_N):
                continue
            colour = _SERIES.get(key, _SERIES["loss"])
            if key == raw:
                axes.plot(*_thinned(steps_N, values_N), color=colour, alpha=0.3, linewidth=0.8)
                values_N = _smoothed(values_N)
            axes.plot(*_thinned(steps_N, values_N), color=colour, label=text)
        drawn = bool(axes.lines)
        _finish(axes, "step", label, legend=drawn and len(curves) > 1)
    return _page_ready(out.getvalue()) if drawn else None


def iou_chart(evaluations: Sequence[Line]) -> str | None:
    """mIoU of objects and of parts at the evaluations during training."""
    with _chart("iou", _NARROW) as (axes, out):
        for granularity in GRANULARITIES:
            lines = [{"step": line["step"], "mIoU": (line.get(granularity) or {}).get("mIoU")} for line in evaluations]
            steps_N, values_N = _series(lines, "mIoU")
            if len(steps_N):
                axes.plot(steps_N, values_N, color=_SERIES[granularity], marker="o", markersize=3.5, label=granularity)
        drawn = bool(axes.lines)
        axes.set_ylim(0, 1)
        _finish(axes, "step", "held-out mIoU", legend=drawn)
    return _page_ready(out.getvalue()) if drawn else None


def iou_histogram(ious: Sequence[float], granularity: str) -> str | None:
    """The share of the expressions in each of 20 ranges of IoU, with mean and median."""
    if not ious:
        return None
    mean, median = float(np.mean(ious)), float(np.median(ious))
    with _chart(f"histogram-{granularity}", _NARROW) as (axes, out):
        counts, _ = np.histogram(ious, _BINS)
        axes.bar(
            _BINS[:-1],
            100 * counts / len(ious),
            width=0.05,
            align="edge",
            color=_SERIES[granularity],
            linewidth=0.6,
            edgecolor=_GRID,
        )
        for value, name, dashes in ((mean, "mean", "--"), (median, "median", ":")):
            axes.axvline(value, color=_INK, linewidth=1.3, linestyle=dashes, label=f"{name} {value:.3f}")
        axes.set_xlim(0, 1)
        _finish(axes, "IoU", "% of the expressions", legend=True)
    return _page_ready(out.getvalue())


def _finish(axes: Axes, x: str, y: str, *, legend: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=False, axis="x")
    if legend:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=4, borderaxespad=0)


def _series(lines: Sequence[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values where a line has a finite number."""
    points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    steps_N, values_N = np.array(points, np.float64).reshape(-1, 2).T
    finite_N = np.isfinite(values_N)
    return steps_N[finite_N], values_N[finite_N]


def _thinned(steps_N: np.ndarray, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points, each the mean of its neighbours: a long run must not make a long page."""
    if len(steps_N) <= _MOST_POINTS:
        return steps_N, values_N
    starts = np.linspace(0, len(steps_N), _MOST_POINTS, endpoint=False).astype(int)
    sizes = np.diff([*starts, len(steps_N)])
    return np.add.reduceat(steps_N, starts) / sizes, np.add.reduceat(values_N, starts) / sizes


def _smoothed(values_N: np.ndarray) -> np.ndarray:
    """Running mean over about 4 % of the points, over what there is of the window at the ends."""
    half = len(values_N) // 50
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    positions = np.arange(len(values_N))
    first, last = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(values_N))
    means_N: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return means_N
