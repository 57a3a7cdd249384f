"""Which checkpoints stay, and that none goes before another one is known to be good."""

import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saving import in_process, save_all, saves

from mres.checkpoint import store
from mres.checkpoint.retention import Best, surplus
from mres.formats.folder import CheckpointError


def steps(root: Path) -> list[int]:
    return [store.verify(folder).step for folder in store.committed(root)]


@given(
    st.sets(st.integers(0, 60)),
    st.integers(1, 4),
    st.none() | st.integers(1, 10),
    st.sets(st.integers(0, 60), max_size=2),
)
def test_what_goes_is_neither_new_nor_due_to_stay(
    there: set[int], keep: int, every: int | None, best: set[int]
) -> None:
    going = surplus(there, keep=keep, keep_every=every, protected=best)
    staying = there - going
    assert going <= there
    assert staying >= set(sorted(there)[-keep:]) | (best & there)
    assert all(every is None or step % every for step in going)
    assert all(step in best or (every and step % every == 0) for step in sorted(staying)[:-keep])


def test_the_newest_and_every_mth_stay(tmp_path: Path) -> None:
    in_process(partial(save_all, keep_every=3), tmp_path, [1, 2, 3, 4, 5, 6, 7, 8])
    assert steps(tmp_path) == [8, 7, 6, 3]


def _measure(root: Path, values: dict[int, float | None], name: str) -> list[str]:
    group, figure = name.split(".", 1)
    said: list[str] = []
    for step, saver in zip(values, saves(root, list(values), keep=1, keep_best=name, say=said.append), strict=True):
        saver.measured(step, {group: {figure: values[step]}})
    return said


def test_the_best_stays_until_there_is_a_better_one(tmp_path: Path) -> None:
    said = in_process(_measure, tmp_path, {1: None, 2: 0.5, 3: 0.7, 4: 0.6, 5: 0.7}, "part.oIoU")
    assert Best.read(tmp_path) == Best(3, "part.oIoU", 0.7, "step-00000003")
    assert steps(tmp_path) == [5, 3]
    assert f"checkpoint {tmp_path}/step-00000003 is the best so far: part.oIoU 0.7000" in said
    in_process(_measure, tmp_path, {6: 0.1}, "object.mIoU")  # of another figure, it is the first
    assert Best.read(tmp_path) == Best(6, "object.mIoU", 0.1, "step-00000006")
    in_process(_measure, tmp_path, {6: 0.05}, "object.mIoU")  # that course was given up
    assert Best.read(tmp_path) == Best(6, "object.mIoU", 0.05, "step-00000006")


@pytest.mark.parametrize("content", ["", "[]", '{"step": 1}', '{"step": "x", "figure": "", "value": 1, "folder": ""}'])
def test_a_best_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "best.json").write_text(content)
    assert Best.read(tmp_path) is None


def test_what_was_resumed_from_stays_until_another_is_read_back(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    in_process(save_all, root, [1])
    message = in_process(_damaging, root, [2, 3])
    assert f"the disk does not give back what was written: {root}/step-00000003/__0_0.distcp is damaged" in message
    assert [path.name for path in store.committed(root)] == [f"step-0000000{step}" for step in (3, 2, 1)]
    assert store.locate(root).step == 2
    in_process(_go_on_from, root, 2, [3, 4])
    assert steps(root) == [4, 3]


def _go_on_from(root: Path, step: int, more: list[int]) -> None:
    list(saves(root, more, resumed=step))


def _damaging(root: Path, more: list[int]) -> str:
    """Goes on from step 1 on a disk that changes a bit of the last one, behind everybody's back."""

    def damage(event: str, args: tuple) -> None:
        if event == "os.rename" and str(args[1]).endswith(f"step-{more[-1]:08d}"):
            path = Path(args[0]) / "__0_0.distcp"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

    sys.addaudithook(damage)
    try:
        _go_on_from(root, 1, more)
    except CheckpointError as error:
        return str(error)
    return ""
