"""DeepSpeed's folders against DeepSpeed itself: real engines save what is read, and load what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed_toy import STEPS, Kind, load_all, save_all
from tensors import spec_of, write_deepspeed
from torch import Tensor

from mres.formats.deepspeed_read import DeepSpeedSource, is_deepspeed, open_deepspeed
from mres.formats.weights import read_tensor
from mres.testing import run_distributed

pytestmark = pytest.mark.slow

SAVED = [
    Kind(1, half=False, nothing=True),
    Kind(1, half=True),
    Kind(2, half=False, nothing=True),
    Kind(3, half=False, sub_group_size=40),
    Kind(3, half=True),
]
# Of the folder of …, to …, on … ranks. Stage 3 of one rank, and all of three: pieces that are padded, and empty ones.
WRITTEN = [
    (SAVED[0], Kind(2, half=False, nothing=True), 2),
    (SAVED[1], Kind(1, half=True), 2),
    (SAVED[2], Kind(1, half=False, nothing=True), 3),
    (SAVED[3], Kind(2, half=False), 3),
    (SAVED[3], Kind(3, half=False), 3),
    (SAVED[4], Kind(3, half=True), 3),
    (SAVED[2], Kind(3, half=False, nothing=True), 1),
    (SAVED[4], Kind(1, half=True), 1),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    run_distributed(save_all, 2, root, SAVED, timeout_s=900)
    return root


@pytest.fixture(scope="module")
def written(saved: Path) -> Path:
    """Written by mres, loaded by DeepSpeed."""
    for world_size in (1, 2, 3):
        cases = []
        for source, kind, size in WRITTEN:
            if size == world_size:
                folder = _folder(saved, source, kind, size)
                assert write_deepspeed(open_deepspeed(saved / str(source)), folder, kind.stage, size) == []
                cases.append((folder, kind))
        run_distributed(load_all, world_size, cases, timeout_s=900)
    return saved


def _folder(root: Path, source: Kind, kind: Kind, size: int) -> Path:
    return root / f"{source}-to-{kind}-{size}"


def _held(path: Path) -> dict:
    return torch.load(path.with_name(path.name + ".held"), weights_only=True)


def _differing(one: dict[str, Tensor], source: DeepSpeedSource) -> list[str]:
    return [name for name, tensor in one.items() if not torch.equal(tensor, read_tensor(source, name))]


@pytest.mark.parametrize("kind", SAVED, ids=str)
def test_what_an_engine_saved_is_read_bit_for_bit(saved: Path, kind: Kind) -> None:
    folder = saved / str(kind)
    assert is_deepspeed(folder)
    source, held = open_deepspeed(folder), _held(folder)
    assert len(held["held"]) == 18
    assert _differing(held["held"], source) == []
    assert read_tensor(source, "optim.scale.step") == STEPS
    assert source.aliases == {"model.again.weight": "model.head.weight"}
    assert source.state is None
    assert set(source.layout.buffers) == {"mask", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(source.layout.frozen) == {"frozen.weight", "frozen.bias", *(["nothing"] if kind.nothing else [])}
    assert [group.options["weight_decay"] for group in source.layout.groups] == [0.1, 0.0]
    for name, spec in source.specs.items():
        whole = read_tensor(source, name)
        assert spec_of(whole) == spec


@pytest.mark.parametrize("kind", SAVED, ids=str)
def test_it_agrees_with_zero_to_fp32(saved: Path, kind: Kind) -> None:
    source, weights = open_deepspeed(saved / str(kind)), _held(saved / str(kind))["weights"]
    if kind.stage == 1 and kind.half:
        assert "not a zero checkpoint" in weights  # DeepSpeed itself cannot; mres can
        return
    missing = {name for name in source.specs if name.startswith("model.")} - {f"model.{name}" for name in weights}
    # Of stage 1 it leaves out what is frozen.
    assert missing == ({f"model.{name}" for name in source.layout.frozen} if kind.stage == 1 else set())
    for name, tensor in weights.items():
        whole = read_tensor(source, source.aliases.get(f"model.{name}", f"model.{name}"))
        assert torch.equal(whole, tensor.float() if tensor.is_floating_point() else tensor), name


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: f"{case[0]}-to-{case[1]}-{case[2]}")
def test_what_is_written_is_what_an_engine_loads(written: Path, case: tuple[Kind, Kind, int]) -> None:
    folder = _folder(written, *case)
    source, held, origin = open_deepspeed(written / str(case[0])), _held(folder), _held(written / str(case[0]))
    assert _differing(held["held"], source) == []
    assert open_deepspeed(folder).layout == source.layout
    after, expected = held["after"], origin["after"]
    if case[1:] == (case[0], 2):
        assert all(torch.equal(after[name], expected[name]) for name in expected)
    if case[0].half == case[1].half:
        for name in expected:
            torch.testing.assert_close(after[name], expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: f"{case[0]}-to-{case[1]}-{case[2]}")
def test_zero_to_fp32_makes_the_weights_of_what_is_written(written: Path, case: tuple[Kind, Kind, int]) -> None:
    source, weights = open_deepspeed(written / str(case[0])), _held(_folder(written, *case))["weights"]
    names = {name.removeprefix("model.") for name in (*source.specs, *source.aliases) if name.startswith("model.")}
    assert set(weights) == names
    for name, tensor in weights.items():
        assert torch.equal(read_tensor(source, source.aliases.get(f"model.{name}", f"model.{name}")), tensor), name
