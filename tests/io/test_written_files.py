"""Whatever is written goes through mres/io (whole or as it was): who opens a file to write it by itself is listed, with the reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "mres/dcp/staging.py": "into a checkpoint's folder in the making, which is renamed when it is whole",
    "mres/errors.py": "/dev/null",
    "mres/evaluate/charts.py": "into memory",
    "mres/evaluate/drawn_file.py": "into memory",
    "mres/evaluate/gallery.py": "into memory",
    "mres/export/programs.py": "into memory, or (ONNX) into a folder in the making",
    "mres/formats/workspace.py": "a folder in the making, with a journal that survives a kill",
    "mres/pixels/picture.py": "into memory",
    "mres/shards/cache.py": "blocks that are checked when they are read; renamed, not waited for",
    "mres/shards/index.py": "into a file of mres.io",
    "mres/shards/own_records.py": "into memory",
    "mres/shards/resize.py": "into memory",
    "mres/shards/tar.py": "into a folder in the making",
    "mres/supervise/heartbeat.py": "every second: renamed, not waited for",
    "mres/train/session.py": "no file: the saver's method save",
    "mres/train/trainer.py": "no file: the saver's method save",
    "tools/scenes/render.py": "into memory",
}
_METHODS = {"write_text", "write_bytes", "savefig", "save", "tofile", "to_json", "to_csv"}
_COPIES = {"copy", "copy2", "copyfile", "copytree", "move"}
_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"}


def writes(path: Path) -> Iterator[int]:
    """Lines of calls that may open a file to be written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        module = (
            node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
        )
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [
            a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str) and len(a.value) <= 3
        ]
        flags = {n.attr for a in given for n in ast.walk(a) if isinstance(n, ast.Attribute)}
        if (
            (name in _METHODS - {"to_json"})
            or (name == "open" and (any(set(mode) & set("wax+") for mode in modes) or flags & _FLAGS))
            or (module == "shutil" and name in _COPIES)
            or (name == "dump" and module in ("json", "pickle", "yaml"))
            or (module == "os" and name == "write")
        ):
            yield node.lineno


def test_nothing_else_is_written_by_hand() -> None:
    paths = [path for room in ("mres", "launch", "tools") for path in sorted((ROOT / room).rglob("*.py"))]
    found = {}
    for path in paths:
        name = str(path.relative_to(ROOT))
        if not name.startswith(("mres/io/", "tools/benchmarks/")) and (lines := list(writes(path))):
            found[name] = lines
    assert {name: lines for name, lines in found.items() if name not in ALLOWED} == {}
    assert sorted(ALLOWED.keys() - found.keys()) == [], "they write nothing any more"
