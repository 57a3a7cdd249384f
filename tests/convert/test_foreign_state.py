"""Checkpoints as others really save them: what torch takes is taken, what cannot come along is said, nothing breaks off."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tensors import same_bits, write_deepspeed
from test_deepspeed_files import Memory
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from mres.checkpoint.opening import open_checkpoint
from mres.convert.convert import convert
from mres.formats.deepspeed_read import open_deepspeed
from mres.formats.folder import CheckpointError
from mres.formats.weights import read_tensor
from mres.testing import run_distributed

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def of(path: Path) -> dict[str, Tensor]:
    source = open_checkpoint(path).source
    return {name: read_tensor(source, name) for name in source.specs}


def written(folder: Path, stage: int = 2, world_size: int = 2) -> Path:
    trained = {"a.weight": (5, 3), "a.bias": (5,)}
    source = Memory(trained, {}, [["a.weight"], ["a.bias"]])
    source.state = None
    write_deepspeed(source, folder, stage, world_size)
    return folder


def change(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=False) | changes, path)


# As engines and users put them beside the model: DeepSpeed 0.16's sparse_tensor_module_names, MultiStepLR's milestones …
CLIENT_STATE = {
    "set": {"a", "b"},
    "empty set": set(),
    "counter": Counter({4: 2, 9: 1}),
    "bytes": b"\x00\xff" * 9,
    "bytearray": bytearray(b"xy"),
    "complex": 1 + 2j,
    "tuple keys": {("a", 1): 2},
    "generator": torch.get_rng_state(),
    "ordered": OrderedDict(a=torch.ones(2)),
    "narrow": torch.ones(3).to(torch.float8_e4m3fnuz),
    "meta": torch.empty(3, device="meta"),
    "size": torch.Size([2, 3]),
    "device": torch.device("cpu"),
    "dtype": torch.bfloat16,
}


@pytest.mark.parametrize("name", sorted(CLIENT_STATE))
def test_what_users_save_beside_a_model_is_in_nobodys_way(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "ds")
    (path,) = folder.glob("*/mp_rank_00_model_states.pt")
    change(path, client=CLIENT_STATE[name])
    torch.load(path, weights_only=True)  # torch takes it
    expected = Memory({"a.weight": (5, 3), "a.bias": (5,)}, {}, None)
    assert torch.equal(read_tensor(open_deepspeed(folder), "model.a.bias"), expected.read("model.a.bias"))


def test_a_scheduler_that_counts_its_milestones(tmp_path: Path) -> None:
    folder = written(tmp_path / "ds")
    optimizer = torch.optim.SGD([torch.ones(1)], 0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9])
    (path,) = folder.glob("*/mp_rank_00_model_states.pt")
    change(path, lr_scheduler=scheduler.state_dict())
    assert open_deepspeed(folder).specs.keys() == open_deepspeed(written(tmp_path / "without")).specs.keys()


def _optimizer_of(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, torch.load(path, weights_only=False)) for path in sorted(folder.glob("*/*optim_states.pt"))]


@pytest.mark.parametrize("to", ["zero1", "zero3", "dcp"])
def test_another_optimizers_state_stays_behind_and_that_is_said(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "ds", stage=2)
    for path, state in _optimizer_of(folder):
        base = state["optimizer_state_dict"]["base_optimizer_state"]
        for entry in base["state"].values():
            entry["max_exp_avg_sq"] = entry["exp_avg_sq"] * 2
        for group in base["param_groups"]:
            group |= {"amsgrad": True, "lr": torch.tensor(0.25), "own": {"a": torch.ones(3)}, "names": {"x"}}
        torch.save(state, path)
    convert(folder, tmp_path / "out", to, world_size=3)
    assert "note: the optimizer's max_exp_avg_sq stay behind" in capsys.readouterr().err
    if to != "dcp":
        options = open_deepspeed(tmp_path / "out").layout.groups[0].options
        assert (options["amsgrad"], options["lr"]) == (False, 0.25)
        assert not {"own", "names"} & set(options)
        for path in (tmp_path / "out").glob("*/*.pt"):
            names = zipfile.ZipFile(path).read(f"{path.stem}/data.pkl")
            assert b"mres" not in names, "nobody else could load it"


def test_a_state_json_of_others_is_not_taken_for_a_runs(tmp_path: Path) -> None:
    folder = written(tmp_path / "ds")
    for content in ('{"epoch": 3}', "[1]", '{"step": "x", "model": {}}'):
        (folder / "state.json").write_text(content)
        (folder / "config.yaml").write_text("a: 1\n")
        assert open_deepspeed(folder).state is None


@pytest.mark.parametrize("to", ["zero1", "zero3"])
def test_half_precision_takes_the_room_that_is_announced(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"model.{number}": torch.randn(300, 1000).bfloat16() for number in range(4)}
    dcp.save(state, checkpoint_id=tmp_path / "source", no_dist=True)
    convert(tmp_path / "source", tmp_path / "out", to)
    written_mb = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) / 1e6
    said = capsys.readouterr().err
    announced = float(said.split("takes about ")[1].split()[0])
    assert written_mb <= announced <= 1.5 * written_mb + 2
    assert all(same_bits(tensor.bfloat16(), state[name]) for name, tensor in of(tmp_path / "out").items())


@pytest.mark.parametrize("to", ["zero1", "zero3"])
def test_what_has_no_place_in_deepspeeds_format_is_refused_by_name(to: str, tmp_path: Path) -> None:
    weight = torch.ones(3)
    for number, (state, message) in enumerate(
        [
            ({"model.w": weight.to(torch.float8_e5m2)}, "'model.w' has type float8_e5m2, which DeepSpeed's format"),
            ({"model.w": weight, "optim.w.exp_avg": weight}, "'optim.w.exp_avg_sq' is missing: AdamW's state is"),
            (
                {"model.w": weight, "optim.w.exp_avg": weight, "optim.w.exp_avg_sq": weight},
                r"'optim.w.step' is missing",
            ),
            ({"model.w": weight, "optim.w.momentum_buffer": weight}, "'optim.w.momentum_buffer' is no state of AdamW"),
            ({"model.w": torch.arange(3)}, "no weight of floats that an optimizer could move"),
        ]
    ):
        source = tmp_path / str(number)
        dcp.save(state, checkpoint_id=source, no_dist=True)
        with pytest.raises(CheckpointError, match=message):
            convert(source, tmp_path / "out", to)
        assert not list(tmp_path.glob("out*"))


def test_what_is_conjugated_when_it_is_read_is_refused(tmp_path: Path) -> None:
    dcp.save({"model.w": torch.ones(3, dtype=torch.complex64).conj()}, checkpoint_id=tmp_path / "source", no_dist=True)
    with pytest.raises(CheckpointError, match=r"conjugated or negated when it is read; save tensor.resolve_conj"):
        convert(tmp_path / "source", tmp_path / "out", "dcp")


def _whole(number: int) -> Tensor:
    shape = [(9, 7), (8, 6, 5), (2, 11), (5,), (64, 3, 2)][number]
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + 1000 * number


def _placements(number: int) -> tuple[Placement, Placement]:
    return [
        (Shard(0), Shard(1)),
        (Shard(2), Shard(1)),
        (Replicate(), Shard(1)),
        (Shard(0), Replicate()),
        (Shard(0),) * 2,
    ][number]


def save_on_a_grid(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    tensors = {f"model.{n}": distribute_tensor(_whole(n), mesh, list(_placements(n))) for n in range(5)}
    dcp.save(tensors, checkpoint_id=folder)
    dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["dcp", "safetensors", "zero3"])
def test_boxes_of_rows_columns_and_grids(tmp_path: Path, to: str) -> None:
    run_distributed(save_on_a_grid, 4, tmp_path / "source", timeout_s=300)
    convert(tmp_path / "source", tmp_path / "out", to)
    found = of(tmp_path / "out")
    assert found.keys() == {f"model.{n}" for n in range(5)}
    assert all(torch.equal(found[f"model.{n}"], _whole(n)) for n in range(5))


@pytest.mark.parametrize("name", ["transposed", "channels last", "every other", "expanded", "late"])
def test_tensors_that_lie_apart_are_read_in_pieces(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mres.formats import torch_archive

    monkeypatch.setattr(torch_archive, "_PIECE_BYTES", 200)
    whole = torch.arange(4 * 6 * 5 * 3, dtype=torch.float32).reshape(4, 6, 5, 3)
    tensor = {
        "transposed": whole.transpose(0, 2),
        "channels last": whole.to(memory_format=torch.channels_last),
        "every other": whole[::2, :, 1:4:2],
        "expanded": whole[:1].expand(7, -1, -1, -1),
        "late": whole[2:].transpose(1, 3),
    }[name]
    dcp.save({"model.w": tensor}, checkpoint_id=tmp_path / "source", no_dist=True)
    folder = written(tmp_path / "ds", stage=1)
    (path,) = folder.glob("*/mp_rank_00_model_states.pt")
    model = torch.load(path, weights_only=False)
    model["module"]["turned"] = tensor.bfloat16()
    model["buffer_names"] = ["turned"]
    torch.save(model, path)
    assert torch.equal(of(tmp_path / "source")["model.w"], tensor)
    assert torch.equal(of(folder)["model.turned"], tensor.bfloat16().float())


def test_many_ranks_are_read_under_a_small_limit_of_open_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "ds", stage=3, world_size=150)
    tool = Path(__file__).parents[2] / "tools" / "convert.py"
    command = [sys.executable, str(tool), str(folder), str(tmp_path / "out"), "--to", "safetensors"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert torch.equal(of(tmp_path / "out")["model.a.weight"], of(folder)["model.a.weight"])


def test_a_small_member_that_unpacks_to_much_is_not_unpacked(tmp_path: Path) -> None:
    folder = written(tmp_path / "ds")
    (path,) = folder.glob("*/mp_rank_00_model_states.pt")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[f"{path.stem}/byteorder"] = bytes(1 << 26)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert os.path.getsize(path) < 1 << 20
    with pytest.raises(CheckpointError, match=r"its .*byteorder is compressed or has 67,108,864 bytes, more than 16"):
        open_deepspeed(folder)
