"""DeepSpeed's folders without DeepSpeed: any number of ranks to any other, what bad files get, and how much memory it takes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import bytes_of, spec_of, write_deepspeed
from torch import Tensor

from mres.formats.deepspeed_read import is_deepspeed, open_deepspeed
from mres.formats.folder import CheckpointError
from mres.formats.weights import read_tensor

CONFIG = "optim:\n  lr: 0.002\n  betas: [0.9, 0.98]\n  eps: 1.0e-6\nparallel:\n  compute_dtype: bfloat16\n"


class Memory:
    """A run's checkpoint as a source: `trained` have moments, `frozen` have none; averages of the trained."""

    aliases: Mapping[str, str] = {}
    notes: Sequence[str] = ()

    def __init__(
        self,
        trained: Mapping[str, tuple[int, ...]],
        frozen: Mapping[str, tuple[int, ...]],
        groups: list[list[str]] | None,
    ) -> None:
        draw = torch.Generator().manual_seed(len(trained))
        self._tensors: dict[str, Tensor] = {}
        for name, shape in (trained | frozen).items():
            self._tensors[f"model.{name}"] = torch.randn(shape, generator=draw)
            if name in trained:
                self._tensors[f"optim.{name}.exp_avg"] = torch.randn(shape, generator=draw)
                self._tensors[f"optim.{name}.exp_avg_sq"] = torch.rand(shape, generator=draw)
                self._tensors[f"optim.{name}.step"] = torch.tensor(7.0)
                self._tensors[f"ema.{name}"] = torch.randn(shape, generator=draw)
        self.specs = {name: spec_of(tensor) for name, tensor in self._tensors.items()}
        self.state: dict[str, Any] | None = {"step": 7, "stream": {"seed": 3}, "model": {}}
        self.config_yaml: str | None = CONFIG
        if groups is not None:
            self.state["groups"] = [
                {"names": names, "weight_decay": 0.1 * number, "lr_scale": 0.5} for number, names in enumerate(groups)
            ]

    def read(self, name: str) -> Tensor:
        return self._tensors[name]

    def read_into(self, name: str, target: memoryview) -> None:
        target[:] = bytes_of(self._tensors[name])

    def change(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor


def _source() -> Memory:
    trained = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (2, 3, 2)}
    return Memory(trained, {"c.weight": (3, 3)}, [["a.weight", "b.weight"], ["a.bias"]])


def _write(folder: Path, stage: int = 2, world_size: int = 2, source: Memory | None = None) -> Path:
    folder.mkdir()
    write_deepspeed(source or _source(), folder, stage, world_size)
    return folder


_SHAPE = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@given(
    st.lists(_SHAPE, min_size=1, max_size=6), st.integers(0, 2), st.tuples(*[st.sampled_from([1, 2, 3])] * 2), st.data()
)
def test_any_cut_to_any_other_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple], num_frozen: int, stages: tuple[int, int], data: Any
) -> None:
    trained = {f"p{number}": shape for number, shape in enumerate(shapes)}
    cut = data.draw(st.integers(0, len(shapes)))
    groups = [list(trained)[:cut], list(trained)[cut:]]
    source = Memory(trained, {f"f{number}": (4, 3) for number in range(num_frozen)}, groups)
    root = tmp_path_factory.mktemp("cut")
    found: Any = source
    for number, stage in enumerate(stages):
        folder, told = root / str(number), []
        folder.mkdir()
        assert write_deepspeed(found, folder, stage, data.draw(st.integers(1, 7)), told.append) == []
        assert sum(told) == sum(spec.num_bytes for spec in source.specs.values())
        found = open_deepspeed(folder)
        assert dict(found.specs) == source.specs
        assert all(torch.equal(read_tensor(found, name), source.read(name)) for name in source.specs)
    assert (found.state, found.config_yaml) == (source.state, CONFIG)
    assert [group.names for group in found.layout.groups] == [tuple(names) for names in groups if names]


def test_what_a_run_says_becomes_the_optimizers_groups(tmp_path: Path) -> None:
    layout = open_deepspeed(_write(tmp_path / "ds", stage=3)).layout
    assert [group.names for group in layout.groups] == [("a.weight", "b.weight"), ("a.bias",)]
    options = [group.options for group in layout.groups]
    assert [(o["weight_decay"], o["lr"], o["lr_scale"]) for o in options] == [(0.0, 0.001, 0.5), (0.1, 0.001, 0.5)]
    assert (options[0]["betas"], options[0]["eps"], options[0]["fused"]) == ((0.9, 0.98), 1e-6, True)
    assert (layout.frozen, layout.compute, layout.counts["global_steps"]) == (("c.weight",), "bfloat16", 7)


def test_without_groups_there_is_one_and_that_is_said(tmp_path: Path) -> None:
    source = Memory({"a": (3,), "b": (2,)}, {}, None)
    tmp_path.joinpath("ds").mkdir()
    assert "one group of all" in write_deepspeed(source, tmp_path / "ds", 1, 2)[0]
    assert [group.names for group in open_deepspeed(tmp_path / "ds").layout.groups] == [("a", "b")]


def test_weights_alone_have_no_optimizer(tmp_path: Path) -> None:
    source = _source()
    source.specs = {name: spec for name, spec in source.specs.items() if name.startswith("model.")}
    written = open_deepspeed(_write(tmp_path / "ds", source=source))
    assert dict(written.specs) == source.specs
    assert written.layout.frozen == ("c.weight",)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_torch_and_unzip_take_the_files(tmp_path: Path, stage: int) -> None:
    for path in sorted(_write(tmp_path / "ds", stage).glob("*/*.pt")):
        assert zipfile.ZipFile(path).testzip() is None
        if path.name == "mp_rank_00_model_states.pt":
            mapped, read = (
                torch.load(path, weights_only=True, mmap=mmap)["module"]["a.weight"] for mmap in (True, False)
            )
            assert torch.equal(mapped, read)
            assert torch.equal(read, _source().read("model.a.weight").bfloat16())


def test_more_ranks_than_open_files_are_allowed_by_default(tmp_path: Path) -> None:
    """Every rank has two files; where the system does not allow them, it says so before any is made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    source = Memory({"a": (3, 5)}, {}, None)
    try:
        write_deepspeed(source, tmp_path / "ds", 3, 200)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert torch.equal(read_tensor(open_deepspeed(tmp_path / "ds"), "model.a"), source.read("model.a"))
        with pytest.raises(CheckpointError, match=r"are \d+ open files, and the system allows \d+"):
            write_deepspeed(source, tmp_path / "more", 3, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_steps_of_a_group_that_differ_are_refused(tmp_path: Path) -> None:
    source = _source()
    source.change("optim.b.weight.step", torch.tensor(6.0))
    with pytest.raises(CheckpointError, match=r"counts 7 steps for 'a\.weight' and 6 for 'b\.weight'"):
        _write(tmp_path / "ds", source=source)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("name", ["*_rank_1_*optim_states.pt", "mp_rank_00_model_states.pt", "mres_ema.pt"])
def test_a_file_that_could_run_code_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = _write(tmp_path / "ds")
    (path,) = folder.glob(f"*/{name}")
    torch.save({"tensors": {}, "extra": _Bomb(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError, match=rf"{path.name} is refused: it wants '.*mkdir'"):
        open_deepspeed(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("stage", [1, 3])
def test_a_rank_that_is_missing_is_named(tmp_path: Path, stage: int) -> None:
    folder = _write(tmp_path / "ds", stage, world_size=3)
    for rank in (2, 1):
        (path,) = folder.glob(f"*/*pp_rank_{rank}_*optim_states.pt")
        path.rename(tmp_path / path.name)
        with pytest.raises(CheckpointError, match=rf"{path.name} is missing"):
            open_deepspeed(folder)
        (tmp_path / path.name).rename(path)
    if stage == 3:
        (folder / "global_step7/zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
        with pytest.raises(CheckpointError, match=r"pp_rank_1_mp_rank_00_model_states\.pt is missing"):
            open_deepspeed(folder)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.98])
def test_a_torn_file_is_named(tmp_path: Path, keep: float) -> None:
    folder = _write(tmp_path / "ds")
    (path,) = folder.glob("*/*_rank_1_*optim_states.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=rf"{path.name} is refused: it is torn"):
        open_deepspeed(folder)


def test_a_bit_that_flipped_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = _write(tmp_path / "ds", world_size=1)
    (path,) = folder.glob("*/*optim_states.pt")
    content = bytearray(path.read_bytes())
    content[content.index(_source().read("model.a.weight").numpy().tobytes()) + 9] ^= 4
    path.write_bytes(content)
    source = open_deepspeed(folder)
    read_tensor(source, "model.c.weight")
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged: bytes from .* \(CRC\)"):
        read_tensor(source, "model.a.weight")


def test_files_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    folder, source = _write(tmp_path / "ds"), _source()
    for name in ("a.weight", "a.bias", "b.weight"):
        source.change(f"optim.{name}.step", torch.tensor(8.0))
    (path,) = _write(tmp_path / "later", source=source).glob("*/*_rank_1_*optim_states.pt")
    (mine,) = folder.glob("*/*_rank_1_*optim_states.pt")
    path.replace(mine)
    with pytest.raises(CheckpointError, match=r"is of step 8, .* of step 7: they were saved at different times"):
        open_deepspeed(folder)
    plain = mine.with_name(mine.name.removeprefix("bf16_"))
    plain.write_bytes(mine.read_bytes())
    with pytest.raises(CheckpointError, match="has two files of rank 1"):
        open_deepspeed(folder)


@pytest.mark.parametrize("tag", ["../ds/global_step7", "/etc", "..", ""])
def test_latest_leads_nowhere_else(tmp_path: Path, tag: str) -> None:
    folder = _write(tmp_path / "ds")
    (folder / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="no name of a folder beside it"):
        is_deepspeed(folder)
    assert is_deepspeed(folder / "global_step7")
    assert not is_deepspeed(tmp_path)


_MEASURED = """
import json, re, sys
from pathlib import Path
import numpy as np
from mres.formats.deepspeed_read import open_deepspeed
from mres.formats.deepspeed_write import write_deepspeed
from mres.formats.tensors import Spec
from mres.formats.memory import Reader
from mres.formats.workspace import Workspace
from mres.io.staged import Staged

NUM, SHAPE = 6, (4096, 4096)

class Large:
    aliases, state, config_yaml, notes = {}, {"step": 1}, None, ()
    specs = {}
    for number in range(NUM):
        specs[f"model.{number}"] = Spec(SHAPE, "float32")
        for key in ("exp_avg", "exp_avg_sq"):
            specs[f"optim.{number}.{key}"] = Spec(SHAPE, "float32")
        specs[f"optim.{number}.step"] = Spec((), "float32")

    def read_into(self, name, target):
        np.frombuffer(target, np.float32)[:] = 5

source = Large()
for stage, world_size in ((2, 2), (3, 1)):
    root = Path(sys.argv[1]) / str(stage)
    staged = Staged(root, root, "")
    staged.take_up()
    work = Workspace(staged)
    write_deepspeed(source, work, stage, world_size, lambda _: None)
    source = open_deepspeed(work.folder)
reader = Reader(source)
for name in source.specs:
    reader.read(name)
largest = max(spec.num_bytes for spec in source.specs.values())
total = sum(spec.num_bytes for spec in source.specs.values())
assert "torch" not in sys.modules
# Not getrusage: that goes on from what the process had been before it became this program.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps([peak, largest, total]))
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_memory_stays_bounded(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, largest, total = json.loads(done.stdout)
    assert total > 1.2e9
    assert peak <= 100e6 + 2 * largest, f"{peak / 1e6:.0f} MB of {total / 1e6:.0f} MB"
