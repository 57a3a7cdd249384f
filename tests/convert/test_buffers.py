"""Persistent buffers through every format and back: bit for bit, each in its own type."""

from pathlib import Path

import pytest
import strange_toy as strange
import torch
import toy_training as toy
from saving import in_process

from mres.checkpoint.opening import open_weights
from mres.convert.convert import convert
from mres.formats.dcp import DcpSource
from mres.formats.folder import seal
from mres.formats.weights import read_tensor
from mres.supervise.world import join_world
from mres.train.optim import parameter_groups

STEP = 2


def _save(folder: Path) -> None:
    strategy = strange.build("single", join_world(60))
    strange.train(strategy, range(STEP))
    strategy.save_state(folder)
    groups = [
        {"names": list(group.names), "weight_decay": group.weight_decay, "lr_scale": group.lr_scale}
        for group in parameter_groups(strange.outline(), 0.05)
    ]
    state = {"step": STEP, "groups": groups, "frozen": [], "buffers": sorted(strange.BUFFERS), "model": {}}
    seal(folder, STEP, state, "model: {}\n")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / f"step-{STEP:08d}"
    in_process(_save, folder)
    return folder


@pytest.mark.parametrize("to", ["zero1", "zero2", "zero3"])
def test_there_and_back(saved: Path, to: str, tmp_path: Path) -> None:
    there = convert(saved, tmp_path / to, to, world_size=2)
    back = convert(tmp_path / to, tmp_path / "back", "dcp")
    toy.assert_same(toy.read(saved), toy.read(back))
    dtypes = {name: tensor.dtype for name, tensor in toy.read(saved).items()}
    assert {name: tensor.dtype for name, tensor in toy.read(back).items()} == dtypes
    named = set()
    for file in there.rglob("*model_states.pt"):
        named |= set(torch.load(file, weights_only=False)["buffer_names"])
    assert named == strange.BUFFERS


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_an_export_has_them_as_they_are(saved: Path, kind: str, tmp_path: Path) -> None:
    exported = convert(saved, tmp_path / "export", "safetensors", weights=kind)  # type: ignore[arg-type]
    weights, source = dict(open_weights(exported).weights), DcpSource(saved)
    for name in strange.BUFFERS:
        expected = read_tensor(source, f"model.{name}")
        assert torch.equal(weights[name], expected), name
        assert weights[name].dtype == expected.dtype
    changed = torch.equal(weights["token"], read_tensor(source, "model.token"))
    assert changed == (kind == "model")
    again = convert(exported, tmp_path / "zero3", "zero3")
    assert set(torch.load(next(again.rglob("*model_states.pt")), weights_only=False)["buffer_names"]) == strange.BUFFERS
