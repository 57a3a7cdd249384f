"""YAML as configs are written: plain values; no anchors, tags or merges, bounded before anything is built of it."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mres.errors import UserError
from mres.io.files import read_regular

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1 << 18, 32, 10_000
# What YAML 1.1 makes of a plain text and nobody means; octal or base 60 it is neither in YAML 1.2 nor anywhere else.
_NOT_MEANT = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_NUMBERS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float")}
_ODD_NUMBER = re.compile(r".*:.*|[-+]?0[0-9_]+")


class YamlError(UserError):
    """YAML that is not read; the message names the place and the reason."""


def read_text(path: Path) -> str:
    """The text of a file of YAML.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `MAX_BYTES`.
        YamlError: it is not UTF-8.
    """
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"cannot read '{path}': {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """The value in a text that came from `where`.

    Dates, and what only YAML 1.1 takes for a number, such as 1:30 (90) and 010 (8), stay texts.

    Raises:
        YamlError: not YAML, an alias, an anchor, a tag, a merge or a key given twice, a character that nothing can be
            called by, too large, too deep or too much of it.
    """
    try:
        if len(text) > MAX_BYTES:
            raise yaml.YAMLError(f"it has {len(text):,} characters; at most {MAX_BYTES:,} are read")
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise YamlError(f"not YAML: {problem} ({place})") from None
    except ValueError as error:  # such as a number of ten thousand digits
        raise YamlError(f"not YAML: {error} ({where})") from None


class _PlainLoader(yaml.SafeLoader):
    """Refuses what YAML has beyond plain values while it parses, and a key that is given twice, whose last YAML takes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent):
            self._refuse(f"the alias '*{event.anchor}' is not read; write out what it stands for", event)
        if event.anchor is not None:
            self._refuse(f"the anchor '&{event.anchor}' is not read; write its value out wherever it is meant", event)
        if event.tag is not None and event.tag != "!":
            self._refuse(f"the tag '{event.tag[:80]}' is not read; write the value alone", event)
        if self._nodes > MAX_NODES:
            self._refuse(f"it has more than {MAX_NODES:,} keys and values", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"it is nested more than {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        odd = tag in _NOT_MEANT or (tag in _NUMBERS and _ODD_NUMBER.fullmatch(value))
        return self.DEFAULT_SCALAR_TAG if odd else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a mapping or a list is given as a key", key)
            if key.value == "<<":
                self._refuse("the merge '<<' is not read; write the keys out", key)
            if key.value in keys:
                self._refuse(f"key '{key.value[:200]}' is given twice", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if problem := _unwritable(value):
            self._refuse(problem, node)
        return value

    def _refuse(self, problem: str, at: Any) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _unwritable(text: str) -> str | None:
    """Which character of it no file can be called by, or no file of UTF-8 can hold."""
    found = next((character for character in text if character == "\0" or "\ud800" <= character <= "\udfff"), None)
    return None if found is None else f"the character U+{ord(found):04X}, which neither a name nor a file can hold"
