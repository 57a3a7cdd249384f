"""Views: what a filter keeps, what a merge holds, and that no data is copied; views of views; parts that changed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_records import make_record

from mres.errors import UserError
from mres.shards.manifest import Tally
from mres.shards.reader import ShardSet
from mres.shards.verify import damages
from mres.shards.view import Condition, filter_set, merge_sets


def ids(folder: Path) -> list[str]:
    shards = ShardSet(folder)
    return [shards.read(i).id for i in range(len(shards))]


@pytest.fixture
def two(tmp_path: Path, write_set) -> tuple[Path, Path]:
    """im0 … im6 of the split train, im10 … im13 of the split val, in shards of 3."""
    write_set(tmp_path / "a")
    write_set(tmp_path / "b", [replace(make_record(i), split="val") for i in range(10, 14)])
    return tmp_path / "a", tmp_path / "b"


def test_a_merge_is_one_after_the_other(two: tuple[Path, Path], tmp_path: Path) -> None:
    merge_sets(tmp_path / "both", [str(path) for path in two])
    assert ids(tmp_path / "both") == [*(f"im{i}" for i in range(7)), *(f"im{i}" for i in range(10, 14))]
    assert sorted(os.listdir(tmp_path / "both")) == ["digests.npy", "index.npy", "manifest.json"]
    shards = ShardSet(tmp_path / "both")
    assert shards.manifest.counts.images_by_split == {"train": 7, "val": 4}
    assert shards.name(7) == f"{tmp_path}/b/shard-000000.tar: 00000000"
    assert damages(str(tmp_path / "both")) == []


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        (Condition(splits=frozenset({"val"})), [10, 11, 12, 13]),
        (Condition(ids=frozenset({"im3", "im12"})), [3, 12]),
        (Condition(without_ids=frozenset({"im3", "im12"})), [0, 1, 2, 4, 5, 6, 10, 11, 13]),
        (Condition(min_expressions=5), [2, 5, 11]),
        (Condition(granularity="part", splits=frozenset({"train"}), min_expressions=4), [1, 2, 4, 5]),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_filter_keeps_what_fulfils_all(
    condition: Condition, kept: list[int], workers: int, two: tuple[Path, Path], tmp_path: Path
) -> None:
    merge_sets(tmp_path / "both", [str(path) for path in two])
    manifest = filter_set(tmp_path / "some", str(tmp_path / "both"), condition, workers=workers)
    assert ids(tmp_path / "some") == [f"im{i}" for i in kept]
    tally = Tally()
    for index in kept:
        tally.add(replace(make_record(index), split="val" if index > 9 else "train"))
    assert manifest.counts == tally.counts(0)
    assert [os.path.basename(part.folder) for part in manifest.parts] == [
        name for name, there in (("a", min(kept) < 7), ("b", max(kept) > 9)) if there
    ], "a view of a view names the sets in which the files lie"
    assert damages(str(tmp_path / "some")) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.sets(st.integers(0, 6), min_size=1), block=st.integers(1, 4))
def test_a_view_reads_as_its_parts_do(kept: set[int], block: int, shard_folder: Path, tmp_path_factory) -> None:
    out = tmp_path_factory.mktemp("view") / "view"
    filter_set(out, str(shard_folder), Condition(ids=frozenset(f"im{i}" for i in kept)))
    view = ShardSet(out)
    assert [view.read(i) for i in range(len(view))] == [make_record(i) for i in sorted(kept)]
    assert view.num_expressions_N.tolist() == [make_record(i).num_expressions for i in sorted(kept)]
    assert view.block_starts[0] == 0
    assert (np.diff(view.block_starts) > 0).all()


def test_the_fingerprint_follows_the_parts(two: tuple[Path, Path], tmp_path: Path, write_set) -> None:
    one = filter_set(tmp_path / "one", str(two[0]), Condition(min_expressions=4))
    other = filter_set(tmp_path / "other", str(two[0]), Condition(min_expressions=5))
    again = filter_set(tmp_path / "again", str(two[0]), Condition(min_expressions=4))
    assert one.sha256 == again.sha256 != other.sha256
    write_set(two[0], [make_record(i) for i in range(6)], overwrite=True)
    with pytest.raises(UserError, match=r"is a view of '.*/a', which is another set now .* make the view again"):
        ShardSet(tmp_path / "one")
    assert any("another set now" in message for message in damages(str(tmp_path / "one")))


def test_sets_and_their_views_can_move_together(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "views").mkdir()
    filter_set(tmp_path / "views/some", str(two[0]), Condition(min_expressions=4))
    (tmp_path / "new").mkdir()
    for name in ("a", "views"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    assert len(ShardSet(tmp_path / "new/views/some")) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b, out: filter_set(out, a, Condition()), "filter needs a condition"),
        (lambda a, b, out: filter_set(out, a, Condition(min_expressions=99)), 'fulfils {"min_expressions": 99}'),
        (
            lambda a, b, out: filter_set(out, a, Condition(ids=frozenset({"im99"}))),
            "1 of the 1 ids of --ids are not in",
        ),
        (
            lambda a, b, out: filter_set(out, a, Condition(drop_leaks=True)),
            "was not checked for leaks; run tools/shard",
        ),
        (lambda a, b, out: filter_set(out, a + "x", Condition(drop_leaks=True)), "no shard set at '.*ax'"),
        (lambda a, b, out: filter_set(Path(a), b, Condition(min_expressions=1)), "exists and is not empty"),
        (lambda a, b, out: merge_sets(out, [a]), "merge needs at least two sets"),
        (lambda a, b, out: merge_sets(out, [a, a]), "record 'im0' is in '.*a' and in '.*a'"),
        (lambda a, b, out: merge_sets(out, [a, "s3://bucket/set"]), "views are made of local sets, and 's3://bucket"),
    ],
)
def test_a_view_that_cannot_be_is_refused(make, message: str, two: tuple[Path, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        make(str(two[0]), str(two[1]), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_manifest_that_names_no_part_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    filter_set(tmp_path / "one", str(two[0]), Condition(min_expressions=4))
    path = tmp_path / "one/manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "parts": []}))
    with pytest.raises(UserError, match="a shard names a part that is not in 'parts'"):
        ShardSet(tmp_path / "one")
