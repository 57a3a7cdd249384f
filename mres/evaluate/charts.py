"""Charts of a run as inline SVG whose colours are the page's CSS variables, so that they follow light and dark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from mres.records import GRANULARITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = Mapping[str, Any]

# matplotlib wants a colour where the page has a variable: each of these is replaced in the finished SVG.
_VARIABLES = ("ink", "muted", "line", "object", "part", "series-1", "series-2", "series-3")
_COLOURS = {name: f"#0a0b{number:02x}" for number, name in enumerate(_VARIABLES, start=1)}
_INK, _MUTED, _GRID = _COLOURS["ink"], _COLOURS["muted"], _COLOURS["line"]
_SERIES = {
    "loss": _COLOURS["series-1"],
    "loss_bce": _COLOURS["series-2"],
    "loss_dice": _COLOURS["series-3"],
    "object": _COLOURS["object"],
    "part": _COLOURS["part"],
}
# Caption, label of the axis, {key of metrics.jsonl: name in the legend}, and the key that is too noisy to read as it is.
_TRAINING = (
    ("Loss", "loss", {"loss": "total", "loss_bce": "BCE", "loss_dice": "Dice"}, "loss"),
    ("Learning rate", "learning rate", {"lr": "learning rate"}, ""),
    ("Gradient norm before clipping", "gradient norm", {"grad_norm": "norm"}, "grad_norm"),
    ("Throughput", "expressions a second", {"expressions_per_s": "expressions"}, "expressions_per_s"),
)
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


def _chart(
    name: str, axis_labels: tuple[str, str], draw: Callable[[Axes], None], size: tuple[float, float] = _WIDE
) -> str | None:
    """The page-ready SVG of what `draw` puts on the axes, None of nothing; `name` keeps the ids of charts apart."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        left, bottom, right, top = (part / size[i % 2] for i, part in enumerate(_MARGINS))
        axes = figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top))
        draw(axes)
        if not axes.lines:
            return None
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        axes.grid(visible=False, axis="x")
        if len(axes.get_legend_handles_labels()[1]) > 1 or size == _NARROW:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=4, borderaxespad=0)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _page_ready(out.getvalue())


def _page_ready(svg: str) -> str:
    """The bare <svg> element: no prologue, namespaces or metadata (they name hosts), colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", svg, count=1)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def training_charts(metrics: Sequence[Line]) -> list[tuple[str, str]]:
    """(caption, SVG) over steps of loss, learning rate, gradient norm and throughput, of those that were measured."""
    charts = []
    for caption, label, curves, raw in _TRAINING:
        draw = partial(_draw_curves, metrics=metrics, curves=curves, raw=raw)
        if (svg := _chart(label, ("step", label), draw)) is not None:
            charts.append((caption, svg))
    return charts


def _draw_curves(axes: Axes, *, metrics: Sequence[Line], curves: Mapping[str, str], raw: str) -> None:
    """Lines over steps; the one called `raw` is shown as measured, thin, behind its running mean."""
    for key, text in curves.items():
        steps_N, values_N = _series(metrics, key)
        if not len(steps_N):
            continue
        colour = _SERIES.get(key, _SERIES["loss"])
        if key == raw:
            axes.plot(*_thinned(steps_N, values_N), color=colour, alpha=0.3, linewidth=0.8)
            values_N = _smoothed(values_N)
        axes.plot(*_thinned(steps_N, values_N), color=colour, label=text)


def iou_charts(evaluations: Sequence[Line], ious: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
    """(caption, SVG) of mIoU at the evaluations during training, and of how the final IoUs lie, by granularity."""
    charts = [
        ("mIoU over training", _chart("iou", ("step", "held-out mIoU"), partial(_draw_miou, evaluations), _NARROW))
    ]
    for name, values in ious.items():
        if values:
            draw = partial(_draw_histogram, values, _SERIES[name])
            svg = _chart(f"histogram-{name}", ("IoU", "% of the expressions"), draw, _NARROW)
            charts.append((f"IoU of the {name} expressions", svg))
    return [(caption, svg) for caption, svg in charts if svg is not None]


def _draw_miou(evaluations: Sequence[Line], axes: Axes) -> None:
    for granularity in GRANULARITIES:
        lines = [{"step": line["step"], "mIoU": (line.get(granularity) or {}).get("mIoU")} for line in evaluations]
        steps_N, values_N = _series(lines, "mIoU")
        if len(steps_N):
            axes.plot(steps_N, values_N, color=_SERIES[granularity], marker="o", markersize=3.5, label=granularity)
    axes.set_ylim(0, 1)


def _draw_histogram(ious: Sequence[float], colour: str, axes: Axes) -> None:
    """The share of the expressions in each of 20 ranges of IoU, with mean and median."""
    shares = np.histogram(ious, _BINS)[0] * 100 / len(ious)
    axes.bar(_BINS[:-1], shares, width=0.05, align="edge", color=colour, linewidth=0.6, edgecolor=_GRID)
    for value, name, dashes in ((np.mean(ious), "mean", "--"), (np.median(ious), "median", ":")):
        axes.axvline(float(value), color=_INK, linewidth=1.3, linestyle=dashes, label=f"{name} {value:.3f}")
    axes.set_xlim(0, 1)


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
