"""Files and folders of tensors: recognised by what is in them, refused with their name."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from clip_files import transformers_of
from safetensors.torch import save_file

from mres.checkpoint.store import CheckpointError
from mres.pretrained.files import open_tensors


def test_the_contents_say_what_a_file_is(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "really-safetensors.pt")
    torch.save(tensors, tmp_path / "really-pickled.safetensors")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("really-safetensors.pt", "really-pickled.safetensors", "old.bin"):
        file = open_tensors(tmp_path / name)
        assert file.shapes == {"a": (3,)}
        assert torch.equal(file.read("a"), tensors["a"])


def test_files_of_torch_before_1_6_are_read_and_checked(tmp_path: Path) -> None:
    """Views of one storage, half precision, a state_dict among other things; no code, no end that is cut off."""
    whole = torch.arange(24.0).view(4, 6)
    state = OrderedDict(
        {"rows": whole[2:], "across": whole.t(), "half": torch.ones(3).bfloat16(), "none": torch.ones(0)}
    )
    path = tmp_path / "old.pth"
    torch.save({"epoch": 3, "state_dict": state}, path, _use_new_zipfile_serialization=False)
    file = open_tensors(path)
    assert (file.format, file.others) == ("torch.save", ("epoch",))
    assert {name: torch.equal(file.read(name), tensor) for name, tensor in state.items()} == dict.fromkeys(state, True)
    content = path.read_bytes()
    for length in (0, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"old.pth' cannot be read as tensors only"):
            open_tensors(path)
    torch.save({"state_dict": state, "path": path}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"it wants 'pathlib.*Path'"):
        open_tensors(path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    transformers_of().save_pretrained(tmp_path, max_shard_size="1MB")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"a": "../elsewhere.safetensors"},
            r"names the shard '../elsewhere.safetensors', which is not a file beside it",
        ),
        ({"a": "/etc/passwd"}, "is not a file beside it"),
        ({"a": 3}, "names the shard 3"),
        ({"a": "gone.safetensors"}, r"no such file: '.*gone.safetensors', which the index names"),
        (["a"], "is damaged: it has no weight_map"),
    ],
)
def test_an_index_names_files_beside_it(tmp_path: Path, names: object, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path)


def test_a_folder_must_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold one .safetensors file, .*found: none"):
        open_tensors(tmp_path)
    for name in ("a", "b"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"found: a.safetensors, b.safetensors\); name the file"):
        open_tensors(tmp_path)


def test_a_shard_too_many_or_broken_is_named(shards: Path) -> None:
    found = sorted(shards.glob("*.safetensors"))
    assert len(found) > 2
    found[1].write_bytes(found[1].read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"{found[1].name}' is not a safetensors file that can be read"):
        open_tensors(shards)
    found[1].write_bytes(found[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"has the tensor '.*' in two shards"):
        open_tensors(shards)


def test_a_pointer_of_git_lfs_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointError, match="is a pointer of Git LFS"):
        open_tensors(tmp_path / "model.safetensors")
