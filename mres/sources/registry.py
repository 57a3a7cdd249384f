"""The foreign formats that `tools/shard.py build` reads: name → module and what it is, known without importing any.

Each module has `add_arguments(parser)`, the options of its format, and `from_arguments(arguments)`, its `RecordSource`.
"""

import argparse
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from mres.sources.source import RecordSource


class Entry(NamedTuple):
    module: str
    help: str


class SourceModule(Protocol):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def from_arguments(self, arguments: argparse.Namespace) -> RecordSource: ...


SOURCES = {
    "scenes": Entry("scenes.command", "procedural scenes"),
    "jsonl": Entry("mres_jsonl", "MRES JSONL: your own data"),
    "coco": Entry("coco", "COCO-format part annotations without objects (car parts and the like)"),
    "paco": Entry("paco", "PACO-LVIS: objects and parts on COCO images"),
    "partimagenet": Entry("partimagenet", "PartImageNet: parts of 11 super-categories on ImageNet images"),
    "pascalpart": Entry("pascal_part", "Pascal-Part as VLPart's COCO-style train.json"),
    "lvis": Entry("lvis", "LVIS v1: objects on COCO images"),
    "instances": Entry("coco_instances", "COCO-style instance masks (COCO, Objects365 with masks)"),
    "instructpart": Entry("instructpart", "InstructPart: parts that an instruction asks for"),
    "cris": Entry("cris", "CRIS's JSON of a split, with a folder of mask files"),
    "cris-lmdb": Entry("cris_lmdb", "CRIS's LMDB of a split (CRIS, ETRIS, DETRIS)"),
    "refer": Entry("refer", "RefCOCO, RefCOCO+, RefCOCOg and RefCLEF in the layout of the REFER API"),
    "grefcoco": Entry("grefcoco", "gRefCOCO: expressions for no, one or several objects"),
    "refcocom": Entry("refcocom", "RefCOCOm, the part benchmark of MRES"),
}


def load(name: str) -> SourceModule:
    """The module of a registered format."""
    return cast(SourceModule, import_module(f"mres.sources.{SOURCES[name].module}"))
