"""YAML that an enemy wrote: refused with its place, quickly and in little memory; what plain text means stays that."""

from pathlib import Path

import pytest
from bounded import bounded

from mres.io.yaml_files import MAX_BYTES, YamlError, parse_yaml, read_text

_LEVELS = [f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 9)]
HOSTILE = {
    "a bomb of aliases": ("\n".join(["x0: &x0 [a,a,a,a,a,a,a,a,a,a]", *_LEVELS]), "&x0"),
    "an alias of itself": ("optim: &o {lr: *o}", "&o"),
    "an unknown alias": ("optim: *o", r"\*o"),
    "a merge": ("optim: {<<: {lr: 1}}", "<<"),
    "a tag that runs": ("run: !!python/object/apply:os.system ['true']", "python/object"),
    "any other tag": ("run: !!set {a, b}", "yaml.org,2002:set"),
    "binary": ("run: !!binary aGVsbG8=", "binary"),
    "too deep, lists": ("run: " + "[" * 3000, "deep"),
    "too deep, mappings": ("run: " + "{a: " * 500 + "1" + "}" * 500, "deep"),
    "many keys": ("run: {" + ",".join(f"k{i}: 1" for i in range(60_000)) + "}", "characters|keys"),
    "many short values": ("[" + "1," * 100_000 + "]", "10,000"),
    "a key twice": ("run:\n  a: 1\n  a: 2\n", "'a' is given twice.*3"),
    "a list as a key": ("? [a, b]\n: 1", "as a key"),
    "a mapping as a key": ("run: {? {a: 1} : 1}", "as a key"),
    "half a pair": ('name: "\\ud800"', r"U\+D800"),
    "NUL": ('name: "a\\0b"', r"U\+0000"),
    "half a pair in a key": ('"\\udfff": 1', r"U\+DFFF"),
    "a long number": ("steps: " + "9" * 10_000, "digits"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
    "too long": ("a: " + "x" * MAX_BYTES, "at most"),
    "nothing but brackets": ("{" * 100_000, "deep"),
    "nothing but dashes": ("- " * 100_000, "deep"),
    "nothing but questions": ("? " * 50_000, "deep"),
    "control characters": ("a: \x01", "character"),
}


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=list(HOSTILE))
def test_what_is_hostile_is_refused_by_name_in_little_time_and_memory(text: str, words: str) -> None:
    found = bounded(lambda: parse_yaml(text, "some.yaml"))
    assert found.kind == "refused", found
    assert "some.yaml" in found.text
    assert len(found.text) < 500
    with pytest.raises(YamlError, match=words):
        parse_yaml(text, "some.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        (":".join(["1"] + ["10"] * 60_000), None),
        ("010", "010"),
        ("2001-01-01", "2001-01-01"),
        ("2001-99-99", "2001-99-99"),
        ("0x10", 16),
        ("1_000", 1000),
        ("0", 0),
        ("-0.5", -0.5),
        ("yes", True),
        ("~", None),
        ("=", "="),
        ("'*quoted'", "*quoted"),
    ],
)
def test_a_plain_text_means_a_number_only_where_all_agree(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert found == (text if len(text) > 100 else value)


def test_a_file_must_be_one_and_small(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"a" * (MAX_BYTES + 1))
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    for name, words in (("pipe", "pipe"), ("large", "at most"), ("sparse", "at most"), (".", "folder")):
        with pytest.raises(OSError, match=words):
            read_text(tmp_path / name)
    (tmp_path / "marked").write_bytes("\ufeffrun: {name: é}".encode())
    assert parse_yaml(read_text(tmp_path / "marked"), "here") == {"run": {"name": "é"}}
