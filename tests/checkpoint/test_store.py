"""Checkpoints that are whole, or are named as what they are."""

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saving import CONFIG_YAML, in_process, limit_file_size, on_ranks, save_all, save_on_full_disk

from mres.checkpoint import store
from mres.checkpoint.opening import open_weights
from mres.checkpoint.store import CheckpointError
from mres.formats.folder import seal
from mres.io.folders import REPLACED_MARK


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of steps 5 and 10; not to be changed."""
    root = tmp_path_factory.mktemp("saved") / "run" / "checkpoints"
    in_process(save_all, root, [5, 10])
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy of them to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "checkpoints"))


def steps(root: Path) -> list[int]:
    return [store.verify(folder).step for folder in store.committed(root)]


def test_what_was_saved_is_there(saved: Path) -> None:
    (found,) = store.newest(saved)
    assert isinstance(found, store.Checkpoint)
    assert (found.step, found.state, found.weights_only) == (10, {"step": 10, "model": {}}, False)
    weights = dict(open_weights(found.folder).weights)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {"weight": (32, 32), "bias": (32,)}
    assert all(torch.equal(value, torch.full_like(value, 10)) for value in weights.values())


@pytest.mark.parametrize("name", [".", "checkpoints", "checkpoints/step-00000010"])
def test_a_run_or_its_checkpoints_or_one_of_them_may_be_named(saved: Path, name: str) -> None:
    assert store.locate(saved.parent / name).step == 10


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(root: Path, data: st.DataObject) -> None:
    folder = root / "step-00000010"
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    intact = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(folder)):
        store.verify(folder)
    path.write_bytes(intact)
    assert store.verify(folder).step == 10


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "config.yaml", "MANIFEST.json"])
@pytest.mark.parametrize("what", ["truncated", "missing"])
def test_damage_is_named_and_the_checkpoint_before_is_used(root: Path, name: str, what: str) -> None:
    path = root / "step-00000010" / name
    if what == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    *errors, good = store.newest(root)
    assert isinstance(good, store.Checkpoint)
    assert good.step == 5
    if (name, what) == ("MANIFEST.json", "missing"):  # then it was never finished
        assert not errors
    else:
        assert str(path) in str(errors[0])
    assert store.locate(root.parent).step == 5


def test_nothing_good_is_an_error_that_names_all(root: Path) -> None:
    for folder in store.committed(root):
        (folder / "state.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"step-00000010/state.json is damaged.*step-00000005/state.json is damaged"
    ):
        store.locate(root)


def test_a_path_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint or run: '.*nowhere'"):
        store.locate(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no finished checkpoint in .* name a run's folder"):
        store.locate(tmp_path)


def rewrite(folder: Path, **changes: object) -> Path:
    """Other values in the manifest, as somebody would put them there who can write it."""
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def reseal(folder: Path) -> None:
    """A manifest that fits what is in the folder now."""
    (folder / "MANIFEST.json").unlink()
    seal(folder, 10, {"step": 10, "model": {}}, CONFIG_YAML)


def test_another_format_is_refused_and_the_checkpoint_before_is_used(root: Path) -> None:
    rewrite(root / "step-00000010", format="mres-checkpoint-9", files="of another kind")
    error, good = store.newest(root)
    assert "format 'mres-checkpoint-9', this version of mres reads 'mres-checkpoint-1'" in str(error)
    assert isinstance(good, store.Checkpoint)
    assert good.step == 5


@pytest.mark.parametrize("name", ["../step-00000005/state.json", "/etc/hostname", "..", "", "a\0b", "sub/state.json"])
def test_a_manifest_cannot_point_outside(root: Path, name: str) -> None:
    folder = root / "step-00000010"
    files = json.loads((folder / "MANIFEST.json").read_text())["files"]
    rewrite(folder, files={**files, name: files["state.json"]})
    with pytest.raises(
        CheckpointError, match=r"MANIFEST.json is refused: it names .*, which is not in the checkpoint's"
    ):
        store.verify(folder)


def test_a_link_that_leads_outside_is_refused(root: Path, tmp_path: Path) -> None:
    folder = root / "step-00000010"
    (folder / "state.json").rename(tmp_path / "state.json")
    (folder / "state.json").symlink_to(tmp_path / "state.json")
    with pytest.raises(CheckpointError, match=r"it names 'state.json', which is not in the checkpoint's folder"):
        store.verify(folder)
    (tmp_path / "link").symlink_to(root / "step-00000005")
    assert store.locate(tmp_path / "link").step == 5, "a link to a whole checkpoint is no harm"


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        "[]",
        "{}",
        "null",
        '{"format": "mres-checkpoint-1", "step": 1e999, "files": {}}',
        " " * (65 << 20),
    ],
    ids=["deep", "list", "empty", "null", "infinite", "huge"],
)
def test_what_is_no_manifest_is_refused(root: Path, content: str) -> None:
    (root / "step-00000010" / "MANIFEST.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"step-00000010/MANIFEST.json is damaged: it is not what mres writes"):
        store.verify(root / "step-00000010")


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "MANIFEST.json"])
def test_a_folder_in_the_place_of_a_file(root: Path, name: str) -> None:
    path = root / "step-00000010" / name
    path.unlink()
    path.mkdir()
    with pytest.raises(
        CheckpointError,
        match=f"{path} (is no file|is damaged.*(Is a directory|a folder)|cannot be read: Is a directory)",
    ):
        store.verify(path.parent)
    assert store.locate(root).step == 5


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_the_metadata_is_refused_and_never_runs(root: Path, tmp_path: Path) -> None:
    folder = root / "step-00000010"
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"metadata is refused: it wants 'posix.mkdir'"):
        store.verify(folder)
    assert not (tmp_path / "owned").exists()


def test_an_object_that_is_no_tensor_would_be_unpickled_and_is_refused(root: Path, tmp_path: Path) -> None:
    folder = root / "step-00000010"
    for path in folder.glob("*.distcp"):
        path.unlink()
    with warnings.catch_warnings(action="ignore"):
        dcp.save({"model.weight": Hostile(tmp_path / "owned")}, checkpoint_id=folder, no_dist=True)
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"metadata is refused: it wants .*\.BytesStorageMetadata"):
        store.verify(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relative_path": "../step-00000005/__0_0.distcp"}, "outside of the checkpoint's folder"),
        ({"relative_path": "/etc/hostname"}, "outside of the checkpoint's folder"),
        ({"relative_path": "__9_0.distcp"}, "which the manifest does not list"),
        ({"offset": 1 << 40}, "it has a tensor at bytes 1099511627776 to"),
        ({"length": -1}, "it has a tensor at bytes"),
    ],
)
def test_tensors_lie_in_the_files_that_are_listed(root: Path, change: dict[str, object], words: str) -> None:
    folder = root / "step-00000010"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        for name, value in change.items():
            setattr(place, name, value)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"metadata is refused: .*take the checkpoint again"):
        store.verify(folder)
    with pytest.raises(CheckpointError, match=words):
        store.verify(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}N" + b"2\x86" * 64 + b"Ns.", "is damaged: .*nested tuple as a key"),
        (b"\x80\x02Nr\x00\x00\x00\x04.", "is damaged"),
        (b"\x80\x02N.", "is damaged: it does not say where all tensors lie"),
        (b"\x80\x02}.", "is damaged: it does not say where all tensors lie"),
    ],
    ids=["hangs", "fills memory", "nothing", "a dictionary"],
)
def test_an_index_that_would_hang_or_fill_memory_is_refused(root: Path, content: bytes, message: str) -> None:
    folder = root / "step-00000010"
    (folder / ".metadata").write_bytes(content)
    reseal(folder)
    with pytest.raises(CheckpointError, match=f"metadata {message}"):
        store.verify(folder)
    assert store.locate(root).step == 5


def _changed(folder: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata.state_dict_metadata["model.weight"])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(folder)


def _larger(tensor: Any) -> None:
    tensor.size = torch.Size([*tensor.size[:-1], tensor.size[-1] + 1])


def _outside(tensor: Any) -> None:
    tensor.chunks[0].sizes = torch.Size([tensor.size[0] + 1, *tensor.size[1:]])


def _of_fewer_dimensions(tensor: Any) -> None:
    tensor.chunks[0].sizes = torch.Size([tensor.size.numel()])


def _twice(tensor: Any) -> None:
    """Two boxes of half the tensor, the same half."""
    half = torch.Size([tensor.size[0] // 2, *tensor.size[1:]])
    tensor.chunks = [type(tensor.chunks[0])(offsets=tensor.chunks[0].offsets, sizes=half) for _ in range(2)]


@pytest.mark.parametrize("change", [_larger, _outside, _of_fewer_dimensions, _twice])
def test_boxes_that_do_not_make_their_tensor_are_refused(root: Path, change: Callable[[Any], None]) -> None:
    folder = root / "step-00000010"
    _changed(folder, change)
    with pytest.raises(CheckpointError, match=r"model.weight is not whole: its pieces do not make its shape"):
        store.verify(folder)


def test_code_in_the_place_of_a_tensor_never_runs(root: Path, tmp_path: Path) -> None:
    folder = root / "step-00000010"
    torch.save([Hostile(tmp_path / "owned"), torch.zeros(4096)], tmp_path / "hostile")  # as large as a tensor of it
    hostile = (tmp_path / "hostile").read_bytes()
    (folder / "__0_0.distcp").write_bytes(hostile)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, len(hostile)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is refused: it wants 'posix.mkdir'"):
        store.verify(folder)
    assert store.locate(root).step == 5  # the one before
    assert not (tmp_path / "owned").exists()


def test_folders_of_other_names_are_no_checkpoints(root: Path) -> None:
    for name in ("step-00000020.incomplete", "step-00000020.superseded", "step-20", "best"):
        shutil.copytree(root / "step-00000010", root / name)
    assert steps(root) == [10, 5]


def test_the_newest_stay(tmp_path: Path) -> None:
    in_process(save_all, tmp_path, [99999998, 99999999, 100000000, 100000001])
    assert steps(tmp_path) == [100000001, 100000000]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_started_again_from_an_earlier_step_supersedes_the_later_ones(root: Path) -> None:
    in_process(save_all, root, [7])
    assert steps(root) == [7, 5]
    assert (root / "step-00000010.superseded").is_dir()
    in_process(save_all, root, [5])
    assert steps(root) == [5]


def test_leftovers_of_killed_saves_go_with_the_next(root: Path) -> None:
    for name in ("step-00000011.incomplete", "step-00000010.replaced/new"):
        shutil.copytree(root / "step-00000010", root / name)
    (root / "step-00000010.replaced" / REPLACED_MARK).touch()
    in_process(save_all, root, [12])
    assert sorted(path.name for path in root.iterdir()) == ["step-00000010", "step-00000012"]


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no small disk can be mounted here")
    message = in_process(save_on_full_disk, small_disk / "run")
    figures = r"it takes 12\.9 MB and [01]\.\d MB are free; make room, lower checkpoint\.keep"
    assert re.search(f"step-00000002 was not written: No space left on device: {figures}", message), message
    assert "checkpoints written before it stand, run the same command again" in message
    assert [path.name for path in (small_disk / "run").iterdir()] == ["step-00000001"]


def test_a_disk_that_fills_up_while_writing_is_told_and_the_old_checkpoint_stands(tmp_path: Path) -> None:
    root = tmp_path / "run"
    message = in_process(limit_file_size, 1 << 20, save_on_full_disk, root)
    assert "step-00000002 was not written: the disk did not take all of a file" in message
    assert "MB were free there" in message
    assert "checkpoints written before it stand" in message
    assert steps(root) == [1]
    assert [path.name for path in root.iterdir()] == ["step-00000001"], "what was half written takes no room"


def _no_place(root: Path) -> str:
    try:
        save_all(root, [1])
    except CheckpointError as error:
        return str(error)
    return ""


def test_all_ranks_learn_of_one_ranks_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first, second = on_ranks(_no_place, 2, tmp_path / "file" / "checkpoints")  # rank 0 alone makes folders
    assert first == second
    assert f"was not written: File exists: '{tmp_path}/file'" in first
