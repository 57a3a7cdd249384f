"""Files that hold no weights are named for what they are; hostile ones are refused at once, and nothing of them runs."""

import argparse
import io
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mres.errors import UserError
from mres.pretrained.files import open_tensors

WEIGHTS = {"blocks.0.norm1.weight": torch.arange(4.0)}


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


FOREIGN = {
    "empty": (b"", "empty"),
    "zeros": (bytes(5000), "zeros"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "html without doctype": (b"<html>404</html>", "web page"),
    "store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS"),
    "json": (b'{"error": "Repository not found"}', "JSON"),
    "text": ("Dépôt introuvable, veuillez réessayer.\n".encode(), "text"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\3" + bytes(range(256)), "gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(range(256)), "HDF5"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff\x01" + bytes(range(256)), "ONNX"),
    "saved model": (b"\x08\x01\x12\xc6\x90\x08*\x8d\x01" + bytes(range(256)), "TensorFlow"),
    "tensorflow index": (b"\0\0\1\2" * 30 + b"\xff" * 40 + bytes.fromhex("57fb808b247547db"), "TensorFlow"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(range(256)), "TensorFlow Lite"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(range(256)), "GGUF"),
    "numpy": (b"\x93NUMPY\1\0v\0{'descr'" + bytes(range(256)), "NumPy"),
    "npz": (npz(), "NumPy"),
    "zip": (zipped({"model/weights.pt": b"x", "a\x1b[31m": b"y"}), "weights.pt"),
    "keras": (zipped({"config.json": b"{}", "model.weights.h5": b"x"}), "Keras"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "picture"),
    "noise": (bytes(random.Random(0).randbytes(400)), "cannot be read as tensors"),
}


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_is_named_for_what_it_is(name: str, ending: str, tmp_path: Path) -> None:
    content, word = FOREIGN[name]
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_tensors(path)
    said = str(caught.value)
    assert word in said
    assert said.isprintable()
    assert "weights_only" not in said


def test_what_scripts_put_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1), "best": np.float64(0.5), "n": np.int64(3), "curve": np.arange(3.0),
        "flag": np.bool_(True),
    }  # fmt: skip
    for zipped_ in (True, False):
        torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped_)
        file = open_tensors(tmp_path / "a.pt")
        assert torch.equal(file.read("blocks.0.norm1.weight"), WEIGHTS["blocks.0.norm1.weight"])
        assert set(file.others) == set(beside)


def test_names_in_messages_have_no_codes_of_terminals(tmp_path: Path) -> None:
    torch.save({"\x1b[31mred": 1, ("a", 10**5000): 2, "state_dict": WEIGHTS}, tmp_path / "a.pt")
    assert all(name.isprintable() for name in open_tensors(tmp_path / "a.pt").others)


def _short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


NESTED_KEY = b")q\0" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200))
BOMBS = {
    "keys that are nested tuples": b"}" + NESTED_KEY + b"Ns.",
    "members that are nested tuples": b"\x8f(" + NESTED_KEY + b"\x90.",
    "sets": b"(" + b"\x8f" * 5_000_000 + b"l.",
    "lists": b"(" + b"]" * 3_000_000 + b"l.",
    "marks": b"(" * 5_000_000 + b".",
    "deep lists": b"]" * 1_200_000 + b"a" * 1_199_999 + b".",
    "a long integer": b"\x8b" + struct.pack("<i", 5_000_000) + b"\x7f" * 5_000_000 + b".",
    "digits": b"I" + b"9" * 5_000_000 + b"\n.",
    "a promised length": b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "a memo of a giant number": b"Nr" + struct.pack("<I", (1 << 32) - 1) + b"j" + struct.pack("<I", 7) + b".",
    "ordered dictionaries of one list": (
        b"ccollections\nOrderedDict\nq\0" + b"](" + b"".join(_short(b"%06d" % i) + b"N\x86" for i in range(50_000))
        + b"e\x85q\1" + b"h\0h\1R0" * 50_000 + b"N."
    ),
    "arguments of one tuple": (
        b"ctorch\ndevice\nq\0(" + b"N" * 1_000_000 + b"tq\1" + b"h\0h\1R0" * 100_000 + b"N."
    ),
    "sizes beyond any": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(((U\7storagectorch\nFloatStorage\nU\0010U\3cpuK\4tQK\0("
        + (b"\x8b" + struct.pack("<i", 300_000) + b"\x7f" * 300_000) * 8 + b"t(" + b"K\1" * 8 + b"ttR."
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    pickled = b"\x80\2" + BOMBS[name]
    if form == "zip":
        path.write_bytes(zipped({"archive/data.pkl": pickled, "archive/version": b"3\n"}))
    else:
        heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(head, 2) for head in heads) + pickled)
    before = _peak_mb()
    started = time.process_time()
    with pytest.raises(UserError, match="cannot be read as tensors only"):
        open_tensors(path)
    assert time.process_time() - started < 4  # of a slow core; without the bounds, hours
    assert _peak_mb() - before < 600


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("comment", [b"", b"x" * 500])
def test_a_zip_of_too_many_members_is_refused_before_its_list_is_read(comment: bytes, tmp_path: Path) -> None:
    entry = struct.pack("<4s24xH16x1s", b"PK\1\2", 1, b"a")
    entries = entry * 400_000
    end = struct.pack("<4s4xHHIIH", b"PK\5\6", 0xFFFF, 0xFFFF, len(entries), 4, len(comment))
    (tmp_path / "many.pt").write_bytes(b"PK\3\4" + entries + end + comment)
    before = _peak_mb()
    with pytest.raises(UserError, match="list of members has 18,800,000 bytes"):
        open_tensors(tmp_path / "many.pt")
    assert _peak_mb() - before < 100


def test_an_expanded_tensor_has_bounds(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="share the memory"):
        open_tensors(tmp_path / "a.pt")
    torch.save({"a": torch.ones(3, 1).expand(3, 100)}, tmp_path / "a.pt")
    assert open_tensors(tmp_path / "a.pt").read("a").sum() == 300


def test_dictionaries_that_hold_one_another_are_gone_through_once(tmp_path: Path) -> None:
    inside: dict = {"a": torch.ones(2)}
    for _ in range(60):
        inside = {"x": inside, "y": inside}
    inside["loop"] = inside
    torch.save(inside, tmp_path / "a.pt")
    assert len(open_tensors(tmp_path / "a.pt")) == 1


def _mutants(count: int, folder: Path) -> None:
    """Whole small files with bytes that were changed, lost or doubled: tensors, or one message."""
    draw = random.Random(count)
    state = {"model": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(3).half()}, "epoch": 3, "lr": 0.1}
    forms = []
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        torch.save(state, folder / f"{number}.pt", **options)
        forms.append((folder / f"{number}.pt").read_bytes())
    save_file(state["model"], folder / "a.safetensors")
    forms.append((folder / "a.safetensors").read_bytes())
    path = folder / "mutant.pt"
    for _ in range(count):
        content = bytearray(draw.choice(forms))
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.randrange(len(content))
            kind = draw.randrange(4)
            if kind == 0:
                content[at] = draw.randrange(256)
            elif kind == 1:
                content[at] ^= 1 << draw.randrange(8)
            elif kind == 2:
                del content[at : at + draw.choice((1, 4, 64))]
            else:
                content[at:at] = content[draw.randrange(len(content)) :][: draw.choice((1, 8, 64))]
            content = content or bytearray(b"\0")
        path.write_bytes(content)
        try:
            found = [*dict(open_tensors(path)).values()]
        except UserError as error:
            found = [str(error)]
        assert all(item.isprintable() if isinstance(item, str) else type(item) is torch.Tensor for item in found), found


def test_mutated_files_are_tensors_or_one_message(tmp_path: Path) -> None:
    _mutants(300, tmp_path)


@pytest.mark.exhaustive
def test_many_more_mutated_files_are_tensors_or_one_message(tmp_path: Path) -> None:
    _mutants(4000, tmp_path)
