"""Files of torch.save without torch: what torch writes is read, what is written torch reads, nothing in them can run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import bytes_of, same_bits, spec_of
from torch import Tensor, nn

from mres.formats.casting import CASTABLE, cast_into
from mres.formats.folder import CheckpointError
from mres.formats.open_files import OpenFiles
from mres.formats.tensors import ITEM_BYTES, Spec
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_archive_writer import TorchArchiveWriter
from mres.formats.workspace import AppendedFile

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from(sorted(ITEM_BYTES))


def drawn(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    spec = Spec(shape, dtype)
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    if spec.num_bytes:
        bits = np.random.default_rng(seed).integers(0, 2, spec.num_bytes, np.uint8)
        tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(bits))
    return tensor


def opened(path: Path, start: int = 0, length: int | None = None) -> TorchArchive:
    return TorchArchive(OpenFiles(), path, start, length)


def read(archive: TorchArchive, stored: Any) -> Tensor:
    target = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
    assert stored.is_contiguous
    if target.numel():
        archive.read_into(stored, memoryview(target.view(-1).view(torch.uint8).numpy().data))
    return target


@given(st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=4), st.integers(0, 9))
def test_what_torch_saves_is_read(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[tuple[int, ...], str]], before: int
) -> None:
    tensors = {str(n): drawn(shape, dtype, n) for n, (shape, dtype) in enumerate(kinds)}
    path = tmp_path_factory.mktemp("saved") / "file"
    with path.open("wb") as file:
        file.write(b"x" * before)
        content = io.BytesIO()
        torch.save({"tensors": OrderedDict(tensors), "step": 3, "groups": [(1, 2.5, None, True)]}, content)
        file.write(content.getvalue())
        file.write(b"x")
    archive = opened(path, before, len(content.getvalue()))
    assert archive.structure["step"] == 3
    assert archive.structure["groups"] == [(1, 2.5, None, True)]
    for name, tensor in tensors.items():
        assert same_bits(read(archive, archive.structure["tensors"][name]), tensor)


def test_views_and_parameters_are_what_they_were(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    parameter = nn.Parameter(whole[1:2])
    parameter.tag = "kept by torch, not needed"
    torch.save({"rows": whole[2:], "across": whole.t(), "parameter": parameter, "size": whole.shape}, tmp_path / "f.pt")
    archive = opened(tmp_path / "f.pt")
    assert torch.equal(read(archive, archive.structure["rows"]), whole[2:])
    assert torch.equal(read(archive, archive.structure["parameter"]), whole[1:2])
    assert archive.structure["size"] == (4, 6)
    across = archive.structure["across"]
    assert (across.shape, across.strides, across.is_contiguous) == ((6, 4), (1, 6), False)
    assert {tensor.key for tensor in archive.structure.values() if tensor != (4, 6)} == {"0"}  # one storage


def write(path: Path, tensors: dict[str, Tensor], stop_after: int | None = None, state: Any = None) -> Any:
    """Whole, or broken off after some of the appends: what it may be gone on with."""
    file = AppendedFile(path, path.stat().st_size if state else 0)
    writer = TorchArchiveWriter(file, "folder", state)
    written, appends = {}, 0
    for name, tensor in tensors.items():
        written[name] = writer.begin(spec_of(tensor))
        content = bytes_of(tensor)
        half = len(content) // 2 // tensor.itemsize * tensor.itemsize
        for start, stop in ((0, half), (half, len(content))):
            if start < stop and writer.num_there <= start:
                if appends == stop_after:
                    file.close()
                    return writer.state
                writer.append(memoryview(content)[start:stop])
                appends += 1
    writer.finish({"tensors": written, "step": 3})
    file.close()
    return None


@given(st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=4), st.integers(0, 8))
def test_what_is_written_torch_reads_broken_off_anywhere(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[tuple[int, ...], str]], stop_after: int
) -> None:
    tensors = {str(n): drawn(shape, dtype, n) for n, (shape, dtype) in enumerate(kinds)}
    folder = tmp_path_factory.mktemp("written")
    whole, resumed = folder / "whole.pt", folder / "resumed.pt"
    write(whole, tensors)
    if state := write(resumed, tensors, stop_after):
        write(resumed, tensors, state=state)
    assert resumed.read_bytes() == whole.read_bytes()
    assert zipfile.ZipFile(whole).testzip() is None
    for mmap in (False, True):
        loaded = torch.load(whole, weights_only=True, mmap=mmap)
        assert loaded["step"] == 3
        assert all(same_bits(loaded["tensors"][name], tensor) for name, tensor in tensors.items())
    archive = opened(whole)
    for name, stored in archive.structure["tensors"].items():
        assert same_bits(read(archive, stored), tensors[name])
        assert archive._place(stored.key)[0] % 64 == 0


@pytest.mark.exhaustive
def test_many_members_need_the_directory_of_64_bits(tmp_path: Path) -> None:
    tensors = {str(number): torch.tensor(number, dtype=torch.int32) for number in range(66_000)}
    write(tmp_path / "many.pt", tensors)
    loaded = torch.load(tmp_path / "many.pt", weights_only=True)["tensors"]
    assert [int(tensor) for tensor in loaded.values()] == list(range(66_000))
    archive = opened(tmp_path / "many.pt")
    assert torch.equal(read(archive, archive.structure["tensors"]["65999"]), tensors["65999"])


@pytest.mark.slow
def test_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Sizes and places that need 64 bits; the bytes themselves are a hole in the file."""
    size = (1 << 32) + 64

    class Hole(AppendedFile):
        def write(self, data: Any) -> int:
            if memoryview(data).nbytes < 1 << 20:
                return super().write(data)
            self._size += memoryview(data).nbytes
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            return memoryview(data).nbytes

    file = Hole(tmp_path / "large.pt")
    writer = TorchArchiveWriter(file)
    zeros = memoryview(bytes(1 << 26))
    large = writer.begin(Spec((size,), "uint8"))
    for at in range(0, size, len(zeros)):
        writer.append(zeros[: size - at])
    small = writer.begin(Spec((2,), "float32"))
    writer.append(memoryview(struct.pack("<2f", 1, 2)))
    writer.finish({"large": large, "small": small})
    file.close()
    loaded = torch.load(tmp_path / "large.pt", weights_only=True, mmap=True)
    assert (loaded["large"].shape, loaded["small"].tolist()) == ((size,), [1.0, 2.0])
    archive = opened(tmp_path / "large.pt")
    assert read(archive, archive.structure["small"]).tolist() == [1.0, 2.0]


class Calls:
    def __init__(self, *made: Any) -> None:
        self._made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made


def archived(path: Path, pickled: bytes) -> Path:
    """A file of torch.save with another pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    return path


def nested_keys() -> bytes:
    """A dictionary whose key is a tuple of a tuple of …, each twice: hashing it would take 2 ** 64 steps."""
    return b"\x80\x02}N" + b"2\x86" * 64 + b"Ns."


# Each with what the refusal names.
BOMBS = {
    "system": (pickle.dumps(Calls(os.system, ("touch ran",)), 2), "system"),
    "eval": (pickle.dumps({"a": Calls(eval, ("1",))}, 2), "eval"),
    "getattr": (pickle.dumps(Calls(getattr, ("x", "__class__")), 2), "getattr"),
    "load": (pickle.dumps(Calls(torch.load, ("x.pt",)), 2), "load"),
    "hub": (b"\x80\x02ctorch.hub\nload\n(X\x01\x00\x00\x00xtR.", "torch.hub.load"),
    "instance": (b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.", "os.system"),
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", "opcode"),
    "calls a name": (b"\x80\x02ctorch\nfloat32\nX\x01\x00\x00\x00x\x85R.", "calls"),
    "sets fields of a class": (b"\x80\x02ctorch\ndevice\n}X\x01\x00\x00\x00aNsb.", "sets fields"),
    "key": (nested_keys(), "as a key"),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_what_could_run_or_hang_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickled, message = BOMBS[name]
    path = archived(tmp_path / "bomb.pt", pickled)
    with pytest.raises(CheckpointError, match=message):
        opened(path)
    assert os.listdir(tmp_path) == ["bomb.pt"]


@pytest.mark.parametrize("name", sorted(set(BOMBS) - {"key", "sets fields of a class", "calls a name"}))
def test_it_is_no_laxer_than_torchs_weights_only(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch refuses is refused above; in the other three it hangs or fails otherwise."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(archived(tmp_path / "bomb.pt", BOMBS[name][0]), weights_only=True)


def test_a_number_to_remember_under_takes_no_memory(tmp_path: Path) -> None:
    pickled = b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFF0) + b"."
    assert opened(archived(tmp_path / "memo.pt", pickled)).structure is None


def _tensor_pickle(offset: int, shape: bytes, numel: int) -> bytes:
    """One of float32 in the storage "0"."""
    parts = [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu"
    ]
    parts += [b"J" + struct.pack("<i", numel), b"tQJ" + struct.pack("<i", offset), shape, b"K\1\x85\x89}tR."]
    return b"".join(parts)


@pytest.mark.parametrize(
    ("offset", "shape", "numel"),
    [
        (0, b"K\5\x85", 4),
        (3, b"K\2\x85", 4),
        (-1, b"K\2\x85", 4),
        (0, b"J\xff\xff\xff\xff\x85", 4),
        (0, b"K\2K\2\x86", 4),
    ],
)
def test_tensors_outside_their_storage_are_refused(offset: int, shape: bytes, numel: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it is torn .*(outside its storage|no storage or no shape|zip\(\))"):
        opened(archived(tmp_path / "t.pt", _tensor_pickle(offset, shape, numel)))


def test_storages_that_are_not_there_or_too_short_are_refused(tmp_path: Path) -> None:
    pickled = _tensor_pickle(0, b"K\4\x85", 4)
    archive = opened(archived(tmp_path / "t.pt", pickled))
    with pytest.raises(CheckpointError, match="has no data/0"):
        archive.read_into(archive.structure, memoryview(bytearray(16)))
    for content, method, message in ((b"1234", zipfile.ZIP_STORED, "12 bytes after"), (b"1" * 16, 8, "is compressed")):
        with zipfile.ZipFile(archived(tmp_path / "t.pt", pickled), "a", method) as file:
            file.writestr("archive/data/0", content)
        archive = opened(tmp_path / "t.pt")
        with pytest.raises(CheckpointError, match=message):
            archive.read_into(archive.structure, memoryview(bytearray(16)))


def test_numbers_of_another_order_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(archived(tmp_path / "t.pt", b"\x80\x02N."), "a") as file:
        file.writestr("archive/byteorder", b"big")
    with pytest.raises(CheckpointError, match="its numbers are big-endian"):
        opened(tmp_path / "t.pt")


def floats(dtype: str) -> Tensor:
    """All there are of two bytes; of more, some of every exponent, and those that round in a special way."""
    if ITEM_BYTES[dtype] == 2:
        return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    bits = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    halfway = torch.arange(1 << 15).mul(1 << 16).add(1 << 15).to(torch.int32)
    return torch.cat([bits, halfway, halfway + 1, halfway - 1]).view(torch.float32).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", CASTABLE)
@pytest.mark.parametrize("wanted", CASTABLE)
def test_floats_are_rounded_as_torch_rounds_them(dtype: str, wanted: str) -> None:
    given_ = floats(dtype)
    expected = given_.to(torch.float32).to(getattr(torch, wanted)) if wanted != "float64" else given_.to(torch.float64)
    found = torch.empty(given_.shape, dtype=getattr(torch, wanted))
    cast_into(memoryview(bytearray(bytes_of(given_))), dtype, memoryview(found.view(torch.uint8).numpy().data), wanted)
    numbers = ~expected.isnan()
    assert torch.equal(found.isnan(), ~numbers)
    assert same_bits(found[numbers], expected[numbers])


def test_values_that_contain_themselves_many_times_are_not_gone_through(tmp_path: Path) -> None:
    """Each level of `nested` doubles what a text, or a hash, of it would take."""
    nested = b"N" + b"2\x86" * 64
    named = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + nested + b"X\3\0\0\0cpuK\1tQ."
    with pytest.raises(CheckpointError, match="a storage of it has no name"):
        opened(archived(tmp_path / "named.pt", named))
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\0"
    again = b"".join(b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" for _ in range(40))
    with pytest.raises(CheckpointError, match="more than 16,777,216 bytes as text"):
        opened(archived(tmp_path / "text.pt", b"\x80\x02](" + text + again + b"e."))
