"""Kill test: real runs and commands are killed (kill -9), at random moments and inside what they write, and repeated.

A run that goes on must end as the undisturbed one did, bit for bit: batches, losses, evaluations, weights and moments.
What a killed command was to make is there as it was before, as it is to be, or not at all, and the same command then
makes the same bytes and leaves nothing beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.claim import claim
from benchmarks.killing import Command, Ended, kill_after, kill_at, preload, run
from mres.checkpoint.opening import open_checkpoint
from mres.io.json_files import read_jsonl

STRATEGIES = {
    "single": (1, "parallel.strategy=single"),
    "ddp": (2, "parallel.strategy=ddp"),
    "fsdp": (2, "parallel.strategy=fsdp"),
    "zero1": (2, "parallel.strategy=zero", "parallel.zero_stage=1"),
    "zero2": (2, "parallel.strategy=zero", "parallel.zero_stage=2"),
    "zero3": (2, "parallel.strategy=zero", "parallel.zero_stage=3"),
}
COMMANDS = ("build", "convert", "export", "evaluate")
_STEPS, _KILLS_A_RUN = 8, 4
_ASIDE = ".part"
_MODEL = {
    "size": "tiny", "image_size": 32, "vision_width": 32, "vision_depth": 2, "vision_heads": 2, "low_group_tokens": 4,
    "high_group_tokens": 3, "text_width": 32, "text_depth": 1, "text_vocab_size": 1024, "text_length": 14,
    "decoder_width": 32, "decoder_heads": 2, "pixel_width": 8,
}  # fmt: skip
_TIMELESS = ("step", "epoch", "images_seen", "expressions_seen", "loss", "loss_bce", "loss_dice", "grad_norm", "lr")

Figures = dict[str, float]


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills `kills` runs, over all strategies, and each other command `each` times; below the temporary folder (TMPDIR)."""
    preload()
    with tempfile.TemporaryDirectory(prefix="mres-kills-") as folder:
        test = KillTest(Path(folder), arguments.seed)
        test.prepare()
        share, rest = divmod(arguments.kills, len(STRATEGIES))
        runs = {name: test.runs(name, share + (n < rest)) for n, name in enumerate(STRATEGIES)}
        commands = {name: test.command(name, arguments.each) for name in COMMANDS}
    found = {**runs, **commands}
    return {
        "bench": "kills",
        "what": f"{arguments.kills} kills of runs, {arguments.each} of each other command; seed {arguments.seed}",
        **found,
        "claims": {
            "runs killed": claim(sum(one["kills"] for one in runs.values()), ">=", arguments.kills),
            "of these, not bit for bit": claim(sum(one["not the same"] for one in runs.values()), "<=", 0),
            "of these, a rank stayed": claim(sum(one["stayed"] for one in runs.values()), "<=", 0),
            "commands killed": claim(sum(one["kills"] for one in commands.values()), ">=", 4 * arguments.each),
            "of these, neither old nor new nor absent": claim(sum(one["torn"] for one in commands.values()), "<=", 0),
            "of these, other bytes when repeated": claim(
                sum(one["not the same"] for one in commands.values()), "<=", 0
            ),
            "files left over": claim(sum(one["left over"] for one in found.values()), "<=", 0),
        },
    }


class KillTest:
    """Everything lies in `folder`; what is killed when follows from `seed`, and from how fast the machine is."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)

    def prepare(self) -> None:
        """Two sets of scenes, a config, and a run that keeps its checkpoints, for the other commands."""
        for name, seed, images in (("train", 1, 24), ("val", 2, 8)):
            self._expect(run(self._build(self._folder / name, seed, images), self._folder))
        config = {
            "run": {"dir": str(self._folder / "runs")},
            "data": {
                "train": str(self._folder / "train"), "val": str(self._folder / "val"), "workers": 1,
                "images_per_batch": 4, "expressions_per_image": 3,
            },
            "model": {**_MODEL, "dropout": 0.1},
            "optim": {"lr": 2e-3, "warmup_steps": 2},
            "train": {"steps": _STEPS, "log_every": 1, "trace_batches": True, "threads": 1},
            "checkpoint": {"every": 2, "keep": 2},
            "evaluate": {"every": 4},
        }  # fmt: skip
        (self._folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._expect(run(self._train("source", "single", "checkpoint.keep=9"), self._folder))

    def runs(self, strategy: str, number: int) -> Figures:
        """So many kills of runs, each of which is killed a few times, then ends."""
        whole = run(self._train(f"{strategy}-whole", strategy), self._folder)
        self._expect(whole)
        expected = course(self._folder / "runs" / f"{strategy}-whole")
        done = same = left = runs = stayed = 0
        while done < number:
            runs += 1
            command = self._train(f"{strategy}-{runs}", strategy)
            kills = [self._kill(command, whole) for _ in range(min(_KILLS_A_RUN, number - done))]
            killed, stayed = sum(one.was_killed for one in kills), stayed + sum(None in one.codes for one in kills)
            run_dir = self._folder / "runs" / f"{strategy}-{runs}"
            ended = run(command, self._folder)
            is_same = set(ended.codes) == {0} and course(run_dir) == expected
            left += len(left_over(run_dir))
            done, same = done + killed, same + killed * is_same
            self._say(
                f"{strategy}: {done} of {number} kills, {done - same} not the same, {left} left over", ended, is_same
            )
            shutil.rmtree(run_dir)
        return {"kills": done, "runs": runs, "not the same": done - same, "left over": left, "stayed": stayed}

    def command(self, name: str, number: int) -> Figures:
        """So many kills of a command; every second one was to replace what it had made of something else."""
        place = self._folder / name
        new, old = self._made(name, place / "new"), self._made(name, place / "old", of_old=True)
        undisturbed = {}
        for kind, command in (("new", new), ("old", old)):
            undisturbed[kind] = run(command, self._folder)
            self._expect(undisturbed[kind])
        states = {kind: files(place / kind) for kind in undisturbed}
        assert states["new"] != states["old"]
        figures = {"kills": 0.0, "torn": 0.0, "not the same": 0.0, "left over": 0.0}
        while figures["kills"] < number:
            replaces = figures["kills"] % 2 == 1
            out = place / f"killed-{figures['kills']:.0f}" / "out"
            out.parent.mkdir()
            if replaces:
                shutil.copytree(place / "old", out)
            command = self._made(name, out, overwrite=replaces)
            if self._kill(command, undisturbed["new"]).was_killed:
                figures["kills"] += 1
                torn = not is_whole(files(out), [states["new"], *([states["old"]] if replaces else [])])
                again = run(command, self._folder)
                other = files(out) != states["new"] or again.codes not in ([0], [2])
                left = [path.name for path in out.parent.iterdir() if path != out]
                figures["torn"] += torn
                figures["not the same"] += other
                figures["left over"] += len(left)
                self._say(f"{name}: {figures} {left}", again, not (torn or other or left))
            shutil.rmtree(out.parent)
        return figures

    def _kill(self, command: Command, whole: Ended) -> Ended:
        """At a moment, of one rank or of all, or inside what a rank writes."""
        rank = self._random.randrange(command.ranks)
        if self._random.random() < 0.5 and whole.operations[rank]:
            return kill_at(command, self._folder, rank, self._random.randint(1, whole.operations[rank]))
        ranks = range(command.ranks) if self._random.random() < 0.5 else [rank]
        return kill_after(command, self._folder, ranks, self._random.uniform(0, whole.seconds))

    def _train(self, name: str, strategy: str, *more: str) -> Command:
        ranks, *overrides = STRATEGIES[strategy]
        words = ("launch/train.py", "--config", str(self._folder / "tiny.yaml"), f"run.name={name}")
        return Command((*words, *map(str, overrides), *more), self._folder / "runs" / name, int(ranks))

    def _build(self, out: Path, seed: int, images: int, *more: str) -> Command:
        words = ["tools/shard.py", "build", "scenes", str(out), "--num-images", str(images), "--seed", str(seed)]
        words += ["--split", "train", "--image-size", "64", "--workers", "2", "--images-per-shard", "4"]
        return Command((*words, *more), out.parent)

    def _made(self, name: str, out: Path, *, of_old: bool = False, overwrite: bool = False) -> Command:
        """The command that makes `out`."""
        more = ["--overwrite"] if overwrite else []
        if name == "build":
            return self._build(out, 4 if of_old else 3, 24, *more)
        source = str(self._folder / "runs/source/checkpoints" / f"step-{4 if of_old else _STEPS:08d}")
        words = {
            "convert": ["tools/convert.py", source, str(out), "--to", "safetensors", *more],
            "export": ["tools/export.py", source, str(out), *more],
            "evaluate": [
                "launch/evaluate.py", "--config", str(self._folder / "tiny.yaml"), "--checkpoint", source, "--out", str(out),
            ],
        }  # fmt: skip
        return Command(tuple(words[name]), out.parent)

    def _expect(self, ended: Ended) -> None:
        assert set(ended.codes) == {0}, ended.outputs

    def _say(self, text: str, ended: Ended, is_good: bool) -> None:
        print(text, file=sys.stderr, flush=True)
        if not is_good:
            print(f"codes {ended.codes}", *ended.outputs, sep="\n", file=sys.stderr, flush=True)


def course(run_dir: Path) -> dict[str, Any]:
    """What of a finished run must not depend on when and how often it was killed."""
    lines = [line for _, line in read_jsonl(run_dir / "metrics.jsonl")]
    return {
        "losses": [{key: line[key] for key in _TIMELESS} for line in lines],
        "batches": (run_dir / "batches.jsonl").read_bytes(),
        "evaluations": (run_dir / "evaluations.jsonl").read_bytes(),
        "state": state_sha256(run_dir / "checkpoints" / f"step-{_STEPS:08d}"),
    }


def state_sha256(checkpoint: Path) -> str:
    """Of every tensor of a checkpoint, weights and moments, with its name."""
    source, digest = open_checkpoint(checkpoint).source, hashlib.sha256()
    for name in sorted(source.specs):
        content = bytearray(source.specs[name].num_bytes)
        source.read_into(name, memoryview(content))
        digest.update(name.encode() + bytes(content))
    return digest.hexdigest()


def left_over(run_dir: Path) -> list[Path]:
    """What of a run's folder only a killed process leaves."""
    return [path for path in run_dir.rglob("*") if path.suffix in (".part", ".incomplete", ".replaced")]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; none where it is not there."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def is_whole(found: Mapping[str, bytes], allowed: list[dict[str, bytes]]) -> bool:
    """Whether nothing is there, or just what one of the commands makes.

    What is still aside is not there yet. Of files that take their names together some may, and then readers take the
    others from aside (`mres.evaluate.results.read_results`).
    """
    there = {name: content for name, content in found.items() if not name.endswith(_ASIDE)}
    followed = there | {name.removesuffix(_ASIDE): content for name, content in found.items() if name not in there}
    return not there or any(state in (there, followed) for state in allowed)
