"""docs/own_model.py gets everything that a model of mres gets, and no room but the model's knows a model by name."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import yaml
from commands import ROOT, command
from PIL import Image

import mres
from mres.config import load_config
from mres.errors import UserError
from mres.export.folder import export
from mres.io.files import file_sha256
from mres.model.config import LossConfig, ModelConfig
from mres.model.spec import KINDS, load_spec
from mres.model.task import SegmentationTask

FILE, PAGE = ROOT / "docs" / "own_model.py", ROOT / "docs" / "own-model.md"


def test_the_page_shows_the_file() -> None:
    shown = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[
        0
    ]  # the ones after it are of single pieces
    assert shown == FILE.read_text(encoding="utf-8")
    assert 60 <= len(shown.splitlines()) <= 100


def test_the_page_explains_every_piece() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [piece for piece in load_spec("unires").__dataclass_fields__ if f"`{piece}`" not in page] == []


@pytest.mark.slow
def test_it_is_trained_resumed_evaluated_exported_and_loaded(
    tmp_path: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    config = {**tiny_run.tiny_config(tiny_shards), "model": {"kind": "mine.py:SPEC", "image_size": 32, "width": 16}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    given = ["--config", "own.yaml", "run.name=own", "optim.ema_decay=0.5", "optim.text_lr_scale=0.5"]
    for world_size, steps, strategy in ((2, 3, "fsdp"), (1, 5, "single")):
        more = [f"train.steps={steps}", f"parallel.strategy={strategy}"]
        done = tiny_run.run(tiny_run.TRAIN, [*given, *more], tmp_path, world_size=world_size)
        assert done.codes == [0] * world_size, done.output
    assert "going on at step 3" in done.output
    done = tiny_run.run(tiny_run.EVALUATE, [*given, "--checkpoint", "runs/own"], tmp_path)
    assert done.codes == [0], done.output

    list(export(tmp_path / "runs" / "own", tmp_path / "exported", programs=["torch"], weights="ema"))
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "**own model**, trained with mres" in card
    assert 'mres.load("path/to/this/folder", kind="mine.py:SPEC")' in card
    assert file_sha256(file) in card
    assert str(tmp_path) not in card
    image = np.zeros((40, 60, 3), np.uint8)
    masks = mres.load(tmp_path / "exported").segment(image, ["the red car", "its wheel"])

    moved = tmp_path / "elsewhere" / "other.py"
    moved.parent.mkdir()
    file.rename(moved)
    with pytest.raises(UserError) as refused:
        mres.load(tmp_path / "exported")
    assert all(word in str(refused.value) for word in (str(file), "SHA-256", "kind=", "--kind"))
    again = mres.load(tmp_path / "exported", kind=f"{moved}:SPEC")
    assert np.array_equal(again.segment(image, ["the red car", "its wheel"]), masks)
    monkeypatch.syspath_prepend(str(moved.parent))
    assert np.array_equal(
        mres.load(tmp_path / "exported", kind="other:SPEC").segment(image, ["the red car"]), masks[:1]
    )
    with pytest.raises(UserError, match=r"is of another model: .*mine\.py:SPEC', not 'unires'"):
        mres.load(tmp_path / "exported", kind="unires")
    check_tools(tmp_path, f"{moved}:SPEC")
    changed = (
        moved.read_text(encoding="utf-8").replace("width: int", "girth: int").replace("config.width", "config.girth")
    )
    moved.with_name("girth.py").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.width"):
        mres.load(tmp_path / "exported", kind=f"{moved.with_name('girth.py')}:SPEC")
    moved.write_text(moved.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="has changed since these weights were trained"):
        mres.load(tmp_path / "exported", kind=f"{moved}:SPEC")


def check_tools(folder: Path, kind: str) -> None:
    """The tools take the model's file from elsewhere, as their messages say."""
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "photo.png")
    for arguments in (
        ["predict.py", "--checkpoint", "runs/own", "--image", "photo.png", "--text", "the red car"],
        ["export.py", "runs/own", "again"],
        ["replay.py", "runs/own", "--step", "2"],
    ):
        name, *more = arguments
        refused = command(f"tools/{name}", *more, folder=folder)
        assert refused.returncode == 2, refused.stderr
        assert "--kind" in refused.stderr
        done = command(f"tools/{name}", *more, "--kind", kind, folder=folder)
        assert done.returncode == 0, done.stderr


# ---- the model is data


def modules() -> list[tuple[Path, ast.Module]]:
    """All of the package but the room of models."""
    files = sorted((ROOT / "mres").rglob("*.py"))
    others = [path for path in files if "model" not in path.relative_to(ROOT / "mres").parts]
    assert len(others) > 150
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in others]


def test_no_other_room_imports_a_model() -> None:
    own = tuple(reference.partition(":")[0].rpartition(".")[0] for reference in KINDS.values())
    for path, tree in modules():
        imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        imported += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert [name for name in imported if name.startswith(own)] == [], path


# Sizes that towers have under these names whatever the model, and what a set of drawn scenes has too.
NEUTRAL = {"image_size", "dropout", "size"} | {
    size
    for spec in map(load_spec, KINDS)
    for tower in (spec.image_weights, spec.text_weights)
    if tower is not None
    for size in tower.keys
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_room_names_a_models_parameters_or_keys(kind: str) -> None:
    spec = load_spec(kind)
    task = SegmentationTask(load_config(None, [f"model.kind={kind}"]).model, LossConfig())
    parameters = [name for name, _ in task.outline().named_parameters()]
    dotted = {".".join(n.split(".")[:i]) for n in parameters for i in range(2, n.count(".") + 2)}
    keys = set(spec.config.model_fields) - set(ModelConfig.model_fields) - NEUTRAL
    for path, tree in modules():
        is_source = "sources" in path.parts  # they read the files that a model's authors gave to others
        said = [text.strip(".") for text in strings(tree)]
        assert [t for t in said if t in dotted | keys or (spec.name in t and not is_source)] == [], path
        read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and is_model_section(n.value)}
        assert read & (keys | NEUTRAL) == set(), path


def is_model_section(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "model"


def strings(tree: ast.Module) -> list[str]:
    """Without docstrings and what a config's key says of itself."""
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)
        if isinstance(node, ast.keyword) and node.arg == "description":
            left_out |= set(ast.walk(node.value))
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in left_out]
    return [node.value for node in constants if isinstance(node.value, str)]
