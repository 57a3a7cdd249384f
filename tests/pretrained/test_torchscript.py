"""TorchScript archives: read like torch.jit.load reads them, but nothing in them runs; what is damaged is named."""

import pickle
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from clip_files import Towers, config_of, edited_archive, load_tower, write_clip
from torch import Tensor, nn

from mres.checkpoint.store import CheckpointError
from mres.pretrained.files import open_tensors


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip("archive", tmp_path_factory.mktemp("archive"))[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_all_tensors_are_those_that_torch_reads(archive: Path) -> None:
    file = open_tensors(archive)
    expected = torch.jit.load(archive).state_dict()
    assert {*expected} <= {*file.shapes}
    for name, value in expected.items():
        mine = file.read(name)
        assert (mine.dtype, mine.shape) == (value.dtype, value.shape), name
        assert torch.equal(mine, value), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_views_of_a_common_storage(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(24.0).reshape(4, 6)
            self.register_buffer("turned", whole.t())
            self.register_buffer("late", whole[2:, 1:3])

        def forward(self, value: Tensor) -> Tensor:
            return value + self.late

    torch.jit.save(torch.jit.script(Views()), tmp_path / "views.pt")
    file = open_tensors(tmp_path / "views.pt")
    for name, value in Views().state_dict().items():
        assert torch.equal(file.read(name), value)


def test_its_code_is_not_looked_at(archive: Path, tmp_path: Path) -> None:
    without = edited_archive(archive, tmp_path / "a.pt", lambda name, content: b"(" if "/code/" in name else content)
    load_tower("text", Towers(config_of()), config_of(), without)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_bomb_is_refused_and_never_runs(archive: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "owned"), protocol=2)
    path = edited_archive(archive, tmp_path / "b.pt", lambda n, c: bomb if n.endswith("data.pkl") else c)
    with pytest.raises(
        CheckpointError,
        match=r"b.pt' cannot be read as tensors only.*it wants '.*' at byte",
    ):
        load_tower("text", Towers(config_of()), config_of(), path)
    assert not (tmp_path / "owned").exists()


def _truncated_pickle(name: str, content: bytes) -> bytes:
    return content[:100] if name.endswith("data.pkl") else content


def _short_tensor(name: str, content: bytes) -> bytes:
    return content[:-4] if "/data/" in name else content


def _big_endian(name: str, content: bytes) -> bytes:
    return b"big" if name.endswith("byteorder") else content


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_truncated_pickle, "cannot be read as tensors only"),
        (_short_tensor, r"ends 4 bytes after its storage"),
        (_big_endian, "its numbers are big-endian"),
    ],
)
def test_what_is_damaged_is_named(
    archive: Path, tmp_path: Path, edit: Callable[[str, bytes], bytes], message: str
) -> None:
    path = edited_archive(archive, tmp_path / "c.pt", edit)
    with pytest.raises(CheckpointError, match=rf"c.pt.*{message}"):
        load_tower("text", Towers(config_of()), config_of(), path)


def test_a_flipped_bit_and_a_lost_end_are_seen(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    with ZipFile(archive) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"flipped.pt is damaged: .*are not those that were written .CRC."):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "flipped.pt")
    (tmp_path / "lost.pt").write_bytes(content[:-5000])
    with pytest.raises(CheckpointError, match=r"lost.pt' cannot be read"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "lost.pt")


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    """A pickle may claim any shape and stride; none may reach beyond the bytes that are there."""
    linear = nn.Linear(3, 3)
    torch.jit.save(torch.jit.script(linear), tmp_path / "linear.pt")

    def beyond(name: str, content: bytes) -> bytes:
        return content.replace(b"(K\x03K\x03t", b"(K\x03K\x04t") if name.endswith("data.pkl") else content

    path = edited_archive(tmp_path / "linear.pt", tmp_path / "beyond.pt", beyond)
    with pytest.raises(CheckpointError, match=r"beyond.pt' .*a tensor of it lies outside its storage"):
        open_tensors(path)
