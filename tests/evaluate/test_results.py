import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mres.evaluate.results import (
    ExpressionResult,
    ResultsError,
    merge_results,
    name_for,
    name_on,
    others,
    read_results,
    summarise,
    write_results,
)
from mres.records import Expression, ImageRecord, Target, encode_mask

TEXTS = st.text(max_size=20)
RESULT = ExpressionResult("im/o/0", "im", "o", "object", "car", "colour", "the red car", 3, 7)


@st.composite
def results(draw) -> ExpressionResult:
    intersection, union = sorted(draw(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9))))
    masks = st.none() | arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))).map(encode_mask)
    texts = {name: draw(TEXTS) for name in ("expression_id", "image_id", "target_id", "category", "kind", "text")}
    granularity = draw(st.sampled_from(["object", "part"]))
    ids = st.none() | st.integers(-(2**62), 2**62) | TEXTS
    return ExpressionResult(
        granularity=granularity,
        intersection=intersection,
        union=union,
        prediction=draw(masks),
        ref_id=draw(ids),
        ann_id=draw(ids | st.lists(st.integers(0, 9)).map(tuple)),
        sent_id=draw(ids),
        sent_index=draw(st.none() | st.integers(0, 9)),
        no_target=draw(st.booleans()),
        cut=draw(st.booleans()),
        **texts,
    )


def numbered(number: int) -> list[ExpressionResult]:
    return [replace(RESULT, expression_id=f"im/o/{i}", intersection=i % 8) for i in range(number)]


def summary_of(lines: list[ExpressionResult], **more) -> dict:
    return summarise(lines, threshold=0.5, checkpoint="runs/x/checkpoints/step-1", data={"folder": "val"}, **more)


def test_results_of_other_weights_or_another_threshold_are_named_before_they_go(tmp_path: Path) -> None:
    lines = numbered(3)
    write_results(tmp_path, lines, summary_of(lines, manifest_sha256="a" * 64), "results")
    same = summary_of(lines, manifest_sha256="a" * 64)
    assert others(tmp_path, "results", same | {"checkpoint": "elsewhere"}) is None
    assert others(tmp_path, "none", same) is None
    for other in ({"manifest_sha256": "b" * 64}, {"weights": "ema"}, {"protocol": {"threshold": 0.9}}):
        told = others(tmp_path, "results", same | other)
        assert told is not None
        assert "step-1" in told
    (tmp_path / "results.json").rename(tmp_path / "results.json.part")
    assert others(tmp_path, "results", same | {"weights": "ema"}), "a killed writer left it aside"


@given(results())
def test_a_line_reads_back_as_it_was(result):
    assert ExpressionResult.from_json(json.loads(json.dumps(result.to_json())), "here") == result


def test_a_result_is_joined_with_those_of_others_by_the_ids_of_its_source():
    target = Target(
        "7", "object", "", encode_mask(np.zeros((2, 2))), (0, 0, 0, 0), (Expression("a cat", sent_id=701, sent_index=1),),
        ref_id=7, ann_id=(-1,), no_target=True,
    )  # fmt: skip
    record = ImageRecord("im", b"", 2, 2, "val", "s", (target,))
    found = ExpressionResult.of(record, target, 0, (0, 0)).to_json()
    assert {name: found[name] for name in ("ref_id", "ann_id", "sent_id", "sent_index", "no_target")} == {
        "ref_id": 7, "ann_id": (-1,), "sent_id": 701, "sent_index": 1, "no_target": True,
    }  # fmt: skip
    assert not {"ref_id", "ann_id", "sent_id", "sent_index", "no_target"} & RESULT.to_json().keys()


@pytest.mark.parametrize("field", [{"ref_id": 1.5}, {"ann_id": [[1]]}, {"sent_id": True}, {"no_target": 1}])
def test_what_is_no_id_of_a_source_is_named(field):
    with pytest.raises(ResultsError, match=f"'{next(iter(field))}': found "):
        ExpressionResult.from_json({**RESULT.to_json(), **field}, "here")


@given(lines=st.lists(results(), max_size=5))
def test_files_read_back_as_they_were(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("run")
    summary = summary_of(lines, trivial={"everything": lines[:1]})
    write_results(folder, lines, summary)
    assert read_results(folder) == (summary, lines)
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.jsonl"]


def test_the_summary_has_what_the_format_promises():
    summary = summary_of(numbered(4), trivial={"everything": numbered(4)})
    assert summary["num_expressions"] == summary["object"]["num"] == 4
    figures = ["mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "num"]
    for group in ("object", "part", "object_part"):
        assert list(summary[group]) == list(summary["trivial"]["everything"][group]) == figures
    assert summary["by_kind"] == {"object": {"colour": {"mIoU": (0 + 1 + 2 + 3) / 7 / 4, "num": 4}}, "part": {}}
    assert summary["protocol"]["threshold"] == 0.5
    assert {"resolution", "precision", "empty_union", "sentences", "mIoU", "oIoU"} <= summary["protocol"].keys()


def test_expressions_that_were_cut_are_counted_and_found_again(tmp_path):
    lines = [replace(line, cut=i == 2) for i, line in enumerate(numbered(4))]
    summary = summary_of(lines)
    assert summary["cut_expressions"] == 1
    write_results(tmp_path, lines, summary)
    assert [json.loads(line).get("cut") for line in (tmp_path / "results.jsonl").open()] == [None, None, True, None]
    write_results(tmp_path, lines, {**summary, "cut_expressions": 0})
    with pytest.raises(ResultsError, match="does not follow"):
        read_results(tmp_path)
    before = {key: value for key, value in summary.items() if key != "cut_expressions"}  # an earlier version's
    write_results(tmp_path, lines, before)
    assert read_results(tmp_path)[0] == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"intersection": 8}, "intersection"),
        ({"intersection": -1}, "intersection"),
        ({"union": 7.0}, "union"),
        ({"union": True, "intersection": 0}, "union"),
        ({"granularity": "pixel"}, "granularity"),
        ({"text": None}, "text"),
        ({"cut": 1}, "cut"),
        ({"prediction": {"size": [1], "counts": "1"}}, "prediction.size"),
        ({"prediction": {"size": [1, 2], "counts": "é"}}, "prediction.counts"),
        ({"prediction": "10010"}, "prediction"),
        ({"iou": 0.5}, "iou"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, change, named):
    lines = numbered(2)
    write_results(tmp_path, lines, summary_of(lines))
    bad = json.dumps({**lines[1].to_json(), **change})
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(lines[0].to_json())}\n{bad}\n", encoding="utf-8")
    with pytest.raises(ResultsError, match=rf"results\.jsonl:2: .*'?{named}"):
        read_results(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "results.jsonl"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "\ufeff{}"])
def test_missing_or_damaged_files_are_one_clear_message(tmp_path, name, content):
    write_results(tmp_path, numbered(2), summary_of(numbered(2)))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ResultsError, match=r"results\.jsonl?"):
        read_results(tmp_path)


def test_figures_that_do_not_follow_from_the_lines_are_refused(tmp_path):
    write_results(tmp_path, numbered(3), summary_of(numbered(4)))
    with pytest.raises(ResultsError, match="does not follow"):
        read_results(tmp_path)


def test_a_write_that_fails_leaves_the_old_files(tmp_path):
    write_results(tmp_path, numbered(3), summary_of(numbered(3)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, numbered(3), {"mIoU": float("nan")})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_between_the_two_files_loses_neither(tmp_path):
    old, new = numbered(3), numbered(5)
    write_results(tmp_path, old, summary_of(old))
    write_results(tmp_path / "new", new, summary_of(new))
    (tmp_path / "results.json.part").write_bytes((tmp_path / "new" / "results.json").read_bytes())
    assert read_results(tmp_path)[1] == old, "it was killed before the first"
    (tmp_path / "results.jsonl").write_bytes((tmp_path / "new" / "results.jsonl").read_bytes())
    assert read_results(tmp_path) == (summary_of(new), new)
    write_results(tmp_path, old, summary_of(old))
    assert read_results(tmp_path)[1] == old
    assert not list(tmp_path.glob("*.part"))


def test_results_of_other_sets_do_not_replace_each_other(tmp_path):
    lines = numbered(3)
    sets = [
        {"folder": "data/val", "fingerprint": "a" * 64, "split": "val"},
        {"folder": "data/test", "fingerprint": "b" * 64, "split": "test"},
        {"folder": "data/other", "fingerprint": "c" * 64, "split": "val"},
    ]
    names = ["results", "results-test", "results-cccccccc"]
    for _ in range(2):  # again, they replace their own
        for data, name in zip(sets, names, strict=True):
            assert name_for(tmp_path, data) == name
            write_results(tmp_path, lines, {**summary_of(lines), "data": data}, name)
    assert [name_on(tmp_path, data["fingerprint"]) for data in sets] == names
    assert read_results(tmp_path, "results-test")[0]["data"] == sets[1]
    assert name_for(tmp_path, {**sets[0], "fingerprint": "d" * 64}) == "results", "the set was built again"
    assert name_for(tmp_path, {**sets[0], "folder": "moved"}) == "results", "it has moved"


@given(st.integers(0, 12), st.integers(1, 4), st.randoms())
def test_merging_puts_the_ranks_lines_into_the_order_of_the_set(number, ranks, random):
    lines = numbered(number)
    shuffled = random.sample(lines, number)
    parts = [shuffled[rank::ranks] for rank in range(ranks)]
    assert merge_results(parts, [line.expression_id for line in lines]) == lines


@given(st.lists(st.integers(0, 9), max_size=20))
def test_merging_accepts_only_each_expression_exactly_once(drawn):
    lines, ids = numbered(10), [f"im/o/{i}" for i in range(10)]
    part = [lines[i] for i in drawn]
    if sorted(drawn) == list(range(10)):
        assert merge_results([part], ids) == lines
        return
    with pytest.raises(ResultsError) as caught:
        merge_results([part], ids)
    missing, twice = set(range(10)) - set(drawn), [i for i, n in Counter(drawn).items() if n > 1]
    assert ("missing" in str(caught.value)) == bool(missing)
    assert ("more than once" in str(caught.value)) == bool(twice)
    for problem in (missing, twice):
        assert not problem or f"im/o/{min(problem)}" in str(caught.value)


def test_merging_names_what_the_set_does_not_have():
    with pytest.raises(ResultsError, match=r"1 not in the data set \(im/o/1\)"):
        merge_results([numbered(2)], ["im/o/0"])


def test_results_need_their_folder(tmp_path: Path):
    with pytest.raises(ResultsError, match=r"no results\.json"):
        read_results(tmp_path / "nowhere")
