"""Callbacks: the order of calls, a user's own under two ranks, and what of theirs is refused or ends a run with its name."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from tiny_run import TRAIN, lines, run, write_config

from mres.config import load_config
from mres.errors import UserError
from mres.supervise.world import World
from mres.train import run as train_run
from mres.train.callback import Callback, Callbacks, callback_class, users_callbacks

ROOT = Path(__file__).parents[2]

OWN = """
import json
from mres.train.callback import Callback

class Note(Callback):
    def __init__(self, config, world):
        super().__init__(config, world)
        self._note("made", config.run.name)
    def _note(self, *values):
        with open(f"calls-{self.world.rank}.jsonl", "a") as file:
            file.write(json.dumps([str(value) for value in values]) + "\\n")
    def run_start(self, first_step): self._note("run_start", first_step)
    def before_step(self, step): self._note("before_step", step)
    def after_step(self, step, batch): self._note("after_step", step, len(batch.image_ids))
    def on_log(self, metrics):
        self._note("on_log", metrics["step"])
        metrics["own"] = 2 * metrics["step"]
    def evaluated(self, step, table): self._note("evaluated", step, sorted(table)[0])
    def checkpointed(self, step, folder): self._note("checkpointed", step, folder.name)
    def close(self): self._note("close")

class Failing(Callback):
    def after_step(self, step, batch):
        if step == 2 and self.world.rank == 0:
            {}["nothing"]

class Leaving(Callback):
    def after_step(self, step, batch):
        raise SystemExit(0)

class Spoiling(Callback):
    def on_log(self, metrics):
        if self.config.run.name == "tensor":
            import torch
            metrics["own"] = torch.ones(())
        elif self.config.run.name == "other":
            metrics["loss"] = 0.0
        else:
            del metrics["step"]

class NoCallback: ...
"""


def calls(folder: Path, rank: int) -> list[list[str]]:
    return [json.loads(line) for line in (folder / f"calls-{rank}.jsonl").read_text().splitlines()]


def test_a_users_callback_hears_of_everything_on_two_ranks(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    (tmp_path / "own.py").write_text(OWN)
    more = ["train.steps=4", "train.log_every=2", "checkpoint.every=2", "checkpoint.async_save=false"]
    more += ["evaluate.every=4", f"data.val={tiny_shards}", "evaluate.max_images=4", "parallel.strategy=ddp"]
    done = run(TRAIN, ["--config", str(config), "train.callbacks=[own.py:Note]", *more], tmp_path, world_size=2)
    assert done.codes == [0, 0], done.outputs
    expected = [["made", "run"], ["run_start", "0"]]
    for step in range(1, 5):
        expected += [["before_step", f"{step}"], ["after_step", f"{step}", "2"]]
        if step % 2 == 0:
            expected += [["on_log", f"{step}"], ["checkpointed", f"{step}", f"step-{step:08d}"]]
    assert calls(tmp_path, 1) == [*expected, ["close"]]
    *others, evaluated, closed = calls(tmp_path, 0)
    assert (others, closed) == (expected, ["close"])
    assert evaluated[:2] == ["evaluated", "4"]
    assert [line["own"] for line in lines(tmp_path / "runs" / "run" / "metrics.jsonl")] == [4, 8]


def test_what_a_callback_raises_ends_the_run_with_its_name(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    (tmp_path / "own.py").write_text(OWN)
    done = run(TRAIN, ["--config", str(config), "train.callbacks=[own.py:Failing]", "train.steps=4"], tmp_path)
    assert done.codes == [2], done.output
    assert "the callback 'own.py:Failing' (train.callbacks) failed in after_step: KeyError: 'nothing'" in done.output
    assert re.search(r"own\.py:\d+\)", done.output)
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("name", "metric"), [("tensor", "own"), ("other", "loss"), ("none", "step")])
def test_a_callback_may_add_numbers_to_metrics_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, metric: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    config = load_config(None, ["train.callbacks=[own.py:Spoiling]", "data.train=nowhere", f"run.name={name}"])
    (spoiling,) = users_callbacks(config, World(0, 1, 0, 1, torch.device("cpu")))
    with pytest.raises(UserError, match=rf"'own.py:Spoiling'.*'{metric}'"):
        spoiling.on_log({"step": 1, "loss": float("nan")})


def test_a_callback_that_exits_does_not_end_the_run_as_if_all_were_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    config = load_config(None, ["train.callbacks=[own.py:Leaving]", "data.train=nowhere"])
    (leaving,) = users_callbacks(config, World(0, 1, 0, 1, torch.device("cpu")))
    with pytest.raises(UserError, match=r"'own.py:Leaving'.*after_step: SystemExit: 0"):
        leaving.after_step(1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("own.py:Nothing", "'own.py' has no 'Nothing'; did you mean"),
        ("own.py:NoCallback", "must be a class derived from mres.train.callback.Callback"),
        ("own.py:json", "must be a class derived from"),
        ("other.py:Note", "there is no file 'other.py'"),
    ],
)
def test_what_is_no_callback_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN + "\nclass Nothings: ...\n")
    with pytest.raises(UserError, match=words):
        callback_class(reference)


def test_a_method_with_nearly_a_hooks_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head = "from mres.train.callback import Callback\nclass Own(Callback):\n"
    (tmp_path / "near.py").write_text(f"{head}    def on_logs(self, metrics): ...\n")
    with pytest.raises(UserError, match=r"'on_logs' would never be called; did you mean 'on_log'"):
        callback_class("near.py:Own")
    (tmp_path / "far.py").write_text(f"{head}    def _on_logs(self): ...\n    def words(self): ...\n")
    assert callback_class("far.py:Own").__name__ == "Own"


def test_one_callback_needs_no_brackets() -> None:
    assert load_config(None, ["train.callbacks=mine/x.py:Y"]).train.callbacks == ("mine/x.py:Y",)


def test_all_are_closed_though_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from mres.train.callback import Callback\nclass Bad(Callback):\n    def close(self): 1 / 0\n"
    (tmp_path / "bad.py").write_text(source)
    config = load_config(None, ["train.callbacks=[bad.py:Bad]"])
    closed = []

    class Last(Callback):
        def __init__(self) -> None: ...

        def close(self) -> None:
            closed.append(self)

    users = users_callbacks(config, World(0, 1, 0, 1, torch.device("cpu")))
    with pytest.raises(UserError, match=r"'bad.py:Bad' .* failed in close: ZeroDivisionError"):
        Callbacks([*users, Last()]).close()
    assert len(closed) == 1


def test_the_example_of_the_docs_runs(tmp_path: Path, tiny_shards: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n# my_callback.py\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_callback.py").write_text(example)
    more = ["train.callbacks=[my_callback.py:WorstLoss]", "train.steps=3", "train.log_every=1"]
    done = run(TRAIN, ["--config", str(write_config(tmp_path, tiny_shards)), *more], tmp_path)
    assert done.codes == [0], done.output
    metrics = lines(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert metrics[-1]["worst_loss"] == max(line["loss"] for line in metrics)
    assert "step-00000003" in done.output


def test_the_calls_from_a_config_to_the_optimizers_step_are_those_that_are_listed() -> None:
    """Each function of the list in train/run.py exists and calls the next; there are at most six."""
    listed = re.findall(r"^    ([\w.]+) +(mres/[\w/]+\.py)", str(train_run.__doc__), flags=re.MULTILINE)
    assert 3 <= len(listed) <= 6
    following = [name.split(".")[-1] for name, _ in listed[1:]]
    for (name, path), called in zip(listed, [*following, "step"], strict=True):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        function = next(
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name.split(".")[-1]
        )
        names = {
            getattr(node.func, "attr", getattr(node.func, "id", None))
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
        }
        assert called in names, (name, called, names)
