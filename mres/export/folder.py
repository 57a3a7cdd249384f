"""Weights for others: a folder with all that it takes to use them and to judge them. No torch before the arguments hold.

model.safetensors       or several files with an index
config.yaml, state.json, tokenizer.json
origin.json             where the weights come from; README.md, the model card, says it to people
model.pt2, model.onnx   where they were asked for
MANIFEST.json           size and SHA-256 of all of these but the card
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mres.convert.convert import convert
from mres.convert.formats import SHARD_BYTES
from mres.convert.target import check_apart, check_target
from mres.errors import UserError, about_os
from mres.formats.folder import CONFIG, MANIFEST, CheckpointError, read_manifest, seal
from mres.formats.verifying import verify
from mres.io.files import write_durably
from mres.io.progress import track
from mres.io.staged import staged
from mres.supervise.software import package_versions

if TYPE_CHECKING:
    from mres.checkpoint.opening import Kind, OpenedWeights
    from mres.config import Config
    from mres.export.origin import Facts
    from mres.export.programs import ProgramFormat

_PACKAGES = ("mres", "torch", "open_clip_torch", "timm", "onnx", "onnxscript", "onnxruntime")


def export(
    source: Path,
    out: Path,
    *,
    programs: Sequence[ProgramFormat] = (),
    results: Sequence[Path] = (),
    weights: Kind = "model",
    overwrite: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    kind: str | None = None,
) -> Iterator[str]:
    """Writes the folder `out`, which appears at the end, checked, or not at all; yields a line on each step.

    Args:
        source: a run, a checkpoint, an exported folder or a .safetensors file of mres.
        programs: the model as a program too, each tried out beside it.
        results: folders of evaluations for the card; default: the run's own.
        weights: "ema" for the moving average in the place of the weights.
        overwrite: replace what an earlier export or conversion made.
        max_shard_bytes: of more than that, several files.
        kind: of a model of one's own, where its file has moved.

    Raises:
        UserError: source, target or results cannot be used, or what a program needs is not installed.
        ParityError: a program does not compute what the model does.
    """
    from mres.export.programs import check_packages

    for to in programs:
        check_packages(to)
    check_target(out, overwrite=overwrite)
    found, config = _open(source, weights, kind)
    check_apart(found.path.resolve(), out.resolve())
    if lost := next((folder for folder in results if folder.resolve().is_relative_to(out.resolve())), None):
        raise UserError(f"'{out}' would be replaced with the results in it (--results '{lost}'); name another folder")
    from mres.export.origin import origin_of
    from mres.pretrained.whole import notes_on_kind

    for note in notes_on_kind(found.state or {}, config.model):
        yield f"warning: {note}"
    origin = {
        **origin_of(found, config, weights, results),
        "exported_with": package_versions(_PACKAGES),
        "programs": [],
    }
    try:
        with staged(
            out.absolute(), json.dumps(["export", str(found.path.absolute()), weights]), keep=_goes_on
        ) as stage:
            check_target(out, overwrite=overwrite)  # another export may have made it since
            if any(stage.result.iterdir()):
                stage.begin()
            part = convert(found.path, stage.result, "safetensors", weights=weights, max_shard_bytes=max_shard_bytes)
            if programs:
                yield from _add_programs(part, programs, origin, config.model.kind)
            _finish(part, config, origin, found)
            stage.commit()
    except OSError as error:
        raise CheckpointError(f"'{out}' was not written: {about_os(error)}; nothing of it was left behind") from None
    number = len(origin["results"])
    left_out = origin.get("results_left_out") or "none were given"
    figures = f"figures of {number} evaluation(s) in the card" if number else f"no figures in the card ({left_out})"
    yield f"{out}: step {origin['step']:,}, {figures}; {out / 'README.md'} is the model card"


def _goes_on(result: Path, error: BaseException) -> bool:
    """Who interrupts it while the weights are written may want to go on."""
    return isinstance(error, KeyboardInterrupt) and result.with_name(f"{result.name}.incomplete").exists()


def _open(source: Path, weights: Kind, kind: str | None) -> tuple[OpenedWeights, Config]:
    """Raises: UserError: nothing there, damaged, without an average, or weights that do not say what they are of."""
    from mres.checkpoint.opening import open_weights
    from mres.pretrained.whole import run_config

    found = open_weights(source, weights)
    if found.state is None or found.config_yaml is None:
        raise CheckpointError(
            f"'{found.path}' does not say what model and step it is of; export from the run's folder, or convert it "
            "(tools/convert.py --to safetensors), which needs neither"
        )
    return found, run_config(found.path, kind)


def _add_programs(part: Path, programs: Sequence[ProgramFormat], origin: Facts, kind: str) -> Iterator[str]:
    """Writes the programs of what was just exported and holds each beside it."""
    from mres.evaluate.segmenter import load
    from mres.export.parity import compare
    from mres.export.programs import ParityError, open_program, trace, write_program

    segmenter = load(part, device="cpu", kind=kind)
    name = segmenter.task.spec.name
    with _told(f"torch.export cannot trace the model ({name})"):
        traced = trace(segmenter)
    for to in track(programs, len(programs), "writing programs"):
        with _told(f"the model ({name}) cannot be written as a program for {to}"):
            path = write_program(traced, to, part)
            compared = list(compare(segmenter, open_program(path)))
        yield from (f"{path.name}: {row}" for row in compared)
        if not all(row.agrees for row in compared):
            raise ParityError(f"{path.name} does not compute what the model does; nothing was written")
        origin["programs"].append({"file": path.name, "compared": [asdict(row) for row in compared]})


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Not every model can be traced, and torch says so in many ways."""
    from mres.export.programs import ParityError

    try:
        yield
    except OSError:  # the disk, not the model
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ParityError(
            f"{what}: {type(error).__name__}: {first}; nothing was written, without --program it can be"
        ) from error


def _finish(part: Path, config: Config, origin: Facts, found: OpenedWeights) -> None:
    """Adds tokenizer, origin and card; the manifest covers all but the card, which its owner may edit."""
    from mres.export.card import CARD_NAME, render_card
    from mres.export.origin import ORIGIN_NAME
    from mres.model.spec import load_spec
    from mres.model.text import Tokenizer
    from mres.pretrained.tokenizer_file import TOKENIZER_NAME, tokenizer_json

    checkpoint = verify(part)
    config_yaml = (part / CONFIG).read_text(encoding="utf-8")
    tensors = {name: facts for name, facts in read_manifest(part)[1].items() if "safetensors" in name}
    (part / MANIFEST).unlink()
    tokenizer = load_spec(config.model.kind).tokenizer(config.model)
    if isinstance(tokenizer, Tokenizer):  # another is code, which no such file can hold
        write_durably(part / TOKENIZER_NAME, tokenizer_json(tokenizer).encode())
    try:
        origin_json = json.dumps(origin, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise UserError(f"what is known of the weights cannot be written as JSON: {error}") from None
    write_durably(part / ORIGIN_NAME, f"{origin_json}\n".encode())
    seal(part, checkpoint.step, checkpoint.state, config_yaml, tensors)
    sizes = {name: facts.bytes for name, facts in read_manifest(part)[1].items()}
    num_parameters = sum(shape.numel() for shape in found.weights.shapes.values())
    write_durably(part / CARD_NAME, render_card(config, origin, sizes, num_parameters).encode())
