"""The foreign formats that `tools/shard.py build` reads: name → module and what it is, known without importing any.

Each module has `add_arguments(parser)`, the options of its format, and `from_arguments(arguments)`, its `Source`.
"""

import argparse
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from mres.sources.source import Source


class Entry(NamedTuple):
    module: str
    help: str


class SourceModule(Protocol):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def from_arguments(self, arguments: argparse.Namespace) -> Source: ...


SOURCES = {
    "scenes": Entry("scenes.command", "procedural scenes"),
    "jsonl": Entry("mres_jsonl", "MRES JSONL: your own data"),
    "coco": Entry("coco", "COCO-format part annotations without objects (car parts and the like)"),
}


def load(name: str) -> SourceModule:
    """The module of a registered format."""
    return cast(SourceModule, import_module(f"mres.sources.{SOURCES[name].module}"))
