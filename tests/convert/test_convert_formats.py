"""Forms of others: what stock libraries write is read, what is written stock libraries load, and nothing changes on the way."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import load_torch_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model
from tensors import same_bits
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from mres.checkpoint import store
from mres.checkpoint.opening import open_checkpoint
from mres.checkpoint.store import CheckpointError
from mres.convert.convert import convert
from mres.formats.tensors import TensorSource
from mres.formats.weights import read_tensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
LAST = "step-00000002"


def stock(folder: Path, state: dict[str, Tensor]) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def everything(source: TensorSource) -> dict[str, Tensor]:
    return {name: read_tensor(source, name) for name in source.specs}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def of(path: Path) -> dict[str, Tensor]:
    return everything(open_checkpoint(path).source)


shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
numbers = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
buffers = st.sampled_from([torch.int64, torch.uint8, torch.bool])


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(dtype)
    return torch.randint(0, 2, shape, generator=draw).to(dtype)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    """Weights of any shape and type, some of them transposed, some with moments and averages; a buffer."""
    state = {}
    trained = draw(st.lists(shapes, min_size=1, max_size=4))
    for number, shape in enumerate(trained):
        state[f"model.layer.{number}"] = drawn(shape, torch.float32, number)
        if torch.Size(shape).numel():
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"optim.layer.{number}.{key}"] = drawn(shape, torch.float32, 50 + number)
            state[f"optim.layer.{number}.step"] = torch.tensor(7.0)
    if draw(st.booleans()):
        state["ema.layer.0"] = drawn(trained[0], torch.float32, 99)
    for number, (shape, dtype) in enumerate(draw(st.lists(st.tuples(shapes, numbers | buffers), max_size=3))):
        tensor = drawn(shape, dtype, 70 + number)
        state[f"model.frozen{number}"] = tensor.transpose(0, -1) if tensor.dim() > 1 else tensor
    return state


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(state=states(), stage=st.sampled_from(["zero1", "zero2", "zero3"]), world_size=st.integers(1, 4))
def test_there_and_back_through_every_form_is_bit_for_bit(
    state: dict[str, Tensor], stage: str, world_size: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source = stock(root / "source", state)
        weights = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
        convert(source, root / "weights", "safetensors", max_shard_bytes=400)
        convert(root / "weights", root / "back", "dcp")
        assert same(of(root / "back"), weights)
        if not any(tensor.numel() for name, tensor in weights.items() if "layer" in name):
            return  # nothing for an optimizer to move
        convert(source, root / "zero", stage, world_size=world_size)
        convert(root / "zero", root / "again", "dcp")
        found = of(root / "again")
        assert found.keys() == state.keys()
        assert all(same_bits(found[name].to(tensor.dtype), tensor) for name, tensor in state.items())


@pytest.mark.parametrize("to", [pytest.param("zero1", marks=pytest.mark.exhaustive), "zero3"])
def test_a_run_goes_to_deepspeed_and_comes_back_complete(runs: Path, to: str, tmp_path: Path) -> None:
    folder = convert(runs / "tied", tmp_path / "zero", to, world_size=3)
    assert (folder / "latest").read_text() == "global_step2"
    convert(folder, tmp_path / "run" / "checkpoints", "dcp")
    back, source = store.locate(tmp_path / "run"), store.locate(runs / "tied")
    assert back.state == source.state
    assert same(of(back.folder), of(source.folder))


def test_a_stock_loader_reads_what_dcp_becomes(runs: Path, tmp_path: Path) -> None:
    folder = convert(runs / "single", tmp_path / "out", "dcp")
    expected = of(runs / "single")
    loaded = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    assert same(loaded, expected)
    dcp_to_torch_save(folder, tmp_path / "all.pt")
    assert same(torch.load(tmp_path / "all.pt", weights_only=True), expected)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 5, bias=False)
        self.head.weight = self.first.weight


def test_tied_tensors_are_written_once_and_keep_both_names(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save_model(model, str(tmp_path / "model.safetensors"))
    names = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    folder = convert(tmp_path / "model.safetensors", tmp_path / "dcp", "dcp")
    loaded = {f"model.{name}": torch.empty_like(tensor) for name, tensor in names.items()}
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    assert same(loaded, {f"model.{name}": tensor for name, tensor in names.items()})
    assert len(open_checkpoint(folder).source.specs) == len(names) - 1

    convert(folder, tmp_path / "zero", "zero3", world_size=2)
    back = convert(tmp_path / "zero", tmp_path / "back", "safetensors")
    load_model(other, str(back / "model.safetensors"))
    assert same(dict(other.state_dict()), names)


def test_weights_in_several_files_load_as_those_of_one(runs: Path, tmp_path: Path) -> None:
    whole = load_file(convert(runs / "single", tmp_path / "whole", "safetensors") / "model.safetensors")
    folder = convert(runs / "single", tmp_path / "parts", "safetensors", max_shard_bytes=100_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(name in load_file(folder / file) for name, file in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert store.verify(folder).weights_only
    plain = {f"model.{name}": tensor for name, tensor in whole.items()}
    assert same(of(folder), plain)
    assert same(of(folder / "model.safetensors.index.json"), plain)


def test_the_hub_library_loads_several_files(tmp_path: Path) -> None:
    model, other = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    stock(tmp_path / "source", {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    folder = convert(tmp_path / "source", tmp_path / "parts", "safetensors", max_shard_bytes=330)
    load_torch_model(other, folder)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_what_no_state_goes_with_has_no_manifest_and_may_be_replaced(tmp_path: Path) -> None:
    source = stock(tmp_path / "source", {"model.w": torch.ones(3)})
    for to, names in (
        ("dcp", {".metadata", "__0_0.distcp"}),
        ("safetensors", {"model.safetensors"}),
        ("zero2", {"latest", "global_step0"}),
        ("dcp", {".metadata", "__0_0.distcp"}),
    ):
        assert convert(source, tmp_path / "out", to, overwrite=True) == tmp_path / "out"
        assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_weights_alone_become_a_deepspeed_folder_that_starts_anew(runs: Path, tmp_path: Path) -> None:
    export = convert(runs / "single", tmp_path / "export", "safetensors")
    folder = convert(export, tmp_path / "zero", "zero2", world_size=2)
    assert same(of(folder), of(export))
    with pytest.raises(CheckpointError, match="holds weights only"):
        store.locate(convert(folder, tmp_path / "back", "dcp"))


def refused(source: Path, tmp_path: Path, match: str, to: str = "dcp") -> None:
    with pytest.raises(CheckpointError, match=match):
        convert(source, tmp_path / "out", to)
    assert not list(tmp_path.glob("out*"))


def test_bad_folders_of_others_are_named(tmp_path: Path) -> None:
    good = stock(tmp_path / "good", {"model.w": torch.arange(3000.0), "other": torch.ones(3)})
    refused(good, tmp_path, r"1 tensors beside model.…, optim.…, ema.….*\(the first is other\)", "zero1")
    refused(good / "..", tmp_path, "no finished checkpoint in")

    short = Path(shutil.copytree(good, tmp_path / "short"))
    with (short / "__0_0.distcp").open("r+b") as file:
        file.truncate(500)
    refused(short, tmp_path, r"\.metadata is refused: it has a tensor at bytes")
    large = Path(shutil.copytree(good, tmp_path / "large"))
    (large / ".metadata").write_bytes(b"\x80\x02" + b"]" * (2 << 20))
    refused(large, tmp_path, r"\.metadata cannot be read: .* at most 1,0")
    (large / ".metadata").write_bytes(b"\x80\x02" + b"]" * (1 << 19))
    refused(large, tmp_path, r"\.metadata is refused: it has more than 13")
    flipped = Path(shutil.copytree(good, tmp_path / "flipped"))
    content = bytearray((flipped / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (flipped / "__0_0.distcp").write_bytes(content)
    refused(flipped, tmp_path, r"__0_0.distcp is damaged: bytes from .* on are not those")
    unfinished = good.rename(tmp_path / "step-00000001.incomplete")
    refused(unfinished, tmp_path, "no finished checkpoint")

    refused(stock(tmp_path / "names", {"w": torch.ones(2)}), tmp_path, r"no tensor named model.… \(the first is w\)")
    wide = stock(tmp_path / "wide", {"model.w": torch.tensor([1 / 3], dtype=torch.float64)})
    refused(wide, tmp_path, r"model.w \(float64\) does not read back .* a narrower type", "zero1")
    objects = tmp_path / "objects"
    dcp.save({"model.w": torch.ones(2), "args": Path("x")}, checkpoint_id=objects, no_dist=True)
    refused(objects, tmp_path, r"\.metadata is refused: it wants .*BytesStorageMetadata")


def test_bad_indexes_of_several_files_are_named(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, message in (
        ({"w": "../secret.safetensors"}, "names the shard '../secret.safetensors', which is not a file beside it"),
        ({"w": "model-00001-of-00001.safetensors", "v": "model-00001-of-00001.safetensors"}, "lacks v, which"),
        ({"w": "model-00002-of-00002.safetensors"}, "no such file"),
        ([], "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(index, tmp_path, message, "safetensors")
