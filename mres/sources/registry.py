"""The foreign formats that `tools/shard.py build` reads, known without importing any.

The module of a format has `add_arguments(parser)`, its options, and a function that takes these as its arguments and
returns a `RecordSource`.
"""

import argparse
import inspect
from dataclasses import dataclass
from importlib import import_module

from mres.sources.source import RecordSource


@dataclass(frozen=True)
class SourceFormat:
    """A format.

    Attributes:
        module: its dotted name.
        function: what makes the source, in that module.
        help: what the format is.
    """

    module: str
    function: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds its options."""
        import_module(self.module).add_arguments(parser)

    def open(self, arguments: argparse.Namespace) -> RecordSource:
        """The source that the options describe. Raises: UserError: what is wrong with the whole of the data."""
        function = getattr(import_module(self.module), self.function)
        source: RecordSource = function(
            **{name: getattr(arguments, name) for name in inspect.signature(function).parameters}
        )
        return source


SOURCES = {
    "jsonl": SourceFormat("mres.sources.mres_jsonl", "mres_jsonl", "MRES JSONL: your own data"),
    "coco": SourceFormat(
        "mres.sources.coco", "coco_parts", "COCO-format part annotations without objects (car parts and the like)"
    ),
    "paco": SourceFormat("mres.sources.paco", "paco", "PACO-LVIS: objects and parts on COCO images"),
    "partimagenet": SourceFormat(
        "mres.sources.partimagenet", "partimagenet", "PartImageNet: parts of 11 super-categories on ImageNet images"
    ),
    "pascalpart": SourceFormat(
        "mres.sources.pascal_part", "pascal_part", "Pascal-Part as VLPart's COCO-style train.json"
    ),
    "lvis": SourceFormat("mres.sources.lvis", "lvis", "LVIS v1: objects on COCO images"),
    "instances": SourceFormat(
        "mres.sources.coco_instances", "coco_instances", "COCO-style instance masks (COCO, Objects365 with masks)"
    ),
    "labelme": SourceFormat("mres.sources.labelme", "labelme", "LabelMe's JSON files (X-AnyLabeling's too)"),
    "via": SourceFormat("mres.sources.via", "via", "VGG Image Annotator's JSON, projects and exports"),
    "supervisely": SourceFormat("mres.sources.supervisely", "supervisely", "a project in Supervisely's format"),
    "voc": SourceFormat("mres.sources.voc", "voc", "Pascal VOC's SegmentationObject and SegmentationClass"),
    "labelmap": SourceFormat(
        "mres.sources.labelmap", "labelmap", "semantic label maps (CamVid, Cityscapes, ADE20K …): pictures with names"
    ),
    "instructpart": SourceFormat(
        "mres.sources.instructpart", "instructpart", "InstructPart: parts that an instruction asks for"
    ),
    "cris": SourceFormat("mres.sources.cris", "cris", "CRIS's JSON of a split, with a folder of mask files"),
    "cris-lmdb": SourceFormat("mres.sources.cris_lmdb", "cris_lmdb", "CRIS's LMDB of a split (CRIS, ETRIS, DETRIS)"),
    "refer": SourceFormat(
        "mres.sources.refer", "refer", "RefCOCO, RefCOCO+, RefCOCOg and RefCLEF in the layout of the REFER API"
    ),
    "grefcoco": SourceFormat(
        "mres.sources.grefcoco", "grefcoco", "gRefCOCO: expressions for no, one or several objects"
    ),
    "refcocom": SourceFormat("mres.sources.refcocom", "refcocom", "RefCOCOm, the part benchmark of MRES"),
}
