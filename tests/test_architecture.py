"""The house as docs/architecture.md draws it: rooms in one order, no circle of files, small files and functions, and every
question of "where is …?" answered by the folder listing."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mres"
MAP = ROOT / "docs" / "architecture.md"
MOST_LINES, MOST_LINES_OF_P99 = 320, 40


@lru_cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@lru_cache
def imports(path: Path) -> frozenset[str]:
    """The modules of the package that one imports, at its top, within functions or for types."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(filter(None, map(module_of, names)))


def module_of(name: str) -> str:
    """The module that a dotted name lies in; "" for what is not the package's."""
    while name.startswith("mres.") and name not in modules():
        name = name.rpartition(".")[0]
    return name if name.startswith("mres.") else ""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def order_of_rooms() -> list[str]:
    """From the page: the numbered line that says which room is built on which."""
    line = re.search(r"^The order: (.+?)\.$", MAP.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert line is not None
    return re.findall(r"`(\w+)`", line[1])


def test_the_order_names_every_room_once() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(order_of_rooms()) == sorted(rooms - {"__init__"})


def test_lower_rooms_do_not_import_higher_ones() -> None:
    height = {name: number for number, name in enumerate(order_of_rooms())}
    wrong = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in imports(path)
        # A section of a config is declared in its owner's room and imported where it is composed or read.
        if room(module) and not other.endswith(".config") and height[room(other)] > height[room(module)]
    ]
    assert wrong == []


def test_no_circle_of_files() -> None:
    left = {module: set(imports(path)) - {module} for module, path in modules().items()}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert sorted(left) == []


def test_config_modules_import_only_each_other() -> None:
    allowed = ("mres.errors", "mres.section")
    for module, path in modules().items():
        if module.endswith(".config") and module != "mres.config":
            others = [name for name in imports(path) if not name.endswith(".config") and not name.startswith(allowed)]
            assert others == [], module


def test_models_know_no_rank() -> None:
    for path in (PACKAGE / "model").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert "distributed" not in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}, path
        assert not any(
            str(node.module).startswith("torch.distributed")
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        ), path


def functions(path: Path) -> Iterator[int]:
    """How many lines each function has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1


def test_files_and_functions_are_small() -> None:
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}
    lengths = sorted(length for path in modules().values() for length in functions(path))
    assert lengths[int(0.99 * len(lengths))] <= MOST_LINES_OF_P99


def test_what_answers_before_training_loads_nothing_heavy() -> None:
    heavy = ("torch", "timm", "open_clip", "deepspeed", "webdataset", "pycocotools", "matplotlib", "submitit")
    rooms = "mres.config, mres.cli, mres.train.run, mres.evaluate.run, mres.cluster.request, mres.shards.reader"
    code = f"import sys, {rooms}; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


# ---- "in which file is …?": asked before the rooms were moved, to be found from the listing and the page alone

QUESTIONS = (
    ("the learning rate of a step: warm-up and cosine", "train/schedule.py", "learning_rate"),
    ("when a step is skipped, and when too many were", "train/step_filter.py", "SkipPolicy"),
    ("the training loop itself", "train/trainer.py", "Trainer"),
    ("what a user's own callback may do", "train/callback.py", "class Callback"),
    ("how FSDP2 shards a model", "parallel/fsdp.py", "FsdpStrategy"),
    ("how a user's DeepSpeed JSON is merged with the run's", "parallel/zero/ds_config.py", "merged"),
    ("how SLURM's variables become RANK and MASTER_ADDR", "supervise/slurm_env.py", "task_environment"),
    ("what notices that another rank has died", "supervise/peer_monitor.py", "PeerMonitor"),
    ("how ranks find each other before the process group opens", "supervise/rendezvous.py", "rendezvous"),
    ("in which order images come", "stream/order.py", "Order"),
    ("how an encoded image becomes the model's square", "stream/image.py", "place"),
    ("UniRES's language-guided region filter", "model/unires/filter.py", "LanguageGuidedRegionFilter"),
    ("what a model of one's own has to say of itself", "model/spec.py", "ModelSpec"),
    ("how RefCOCO's files of refs are read", "sources/refer.py", "refer"),
    ("which checkpoints of a run are removed", "checkpoint/retention.py", "surplus"),
    ("how DeepSpeed's checkpoints are read without DeepSpeed", "formats/deepspeed_read.py", "open_deepspeed"),
    ("CLIP's names for tensors, whoever wrote the file", "pretrained/clip_names.py", "clip_parts"),
    ("which number oIoU is", "evaluate/iou.py", "oIoU"),
    ("the model card of an export", "export/card.py", "def "),
    ("the text of the batch job that sbatch gets", "cluster/script.py", "script_text"),
    ("what becomes of a job whose tasks have ended", "cluster/decide.py", "decide"),
)


def test_every_question_has_its_file() -> None:
    missing = []
    for question, place, says in QUESTIONS:
        path = PACKAGE / place
        files = [path] if path.is_file() else sorted(path.glob("*.py"))
        if not any(says in file.read_text(encoding="utf-8") for file in files):
            missing.append(question)
    assert len(QUESTIONS) >= 20
    assert missing == []
