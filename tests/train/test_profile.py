"""Windows of steps under the profiler: written by the ranks that were named, also where a stop cuts them off."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from tiny_run import TRAIN, lines, run, write_config

from mres.config import load_config
from mres.errors import UserError
from mres.stream.batch import Batch
from mres.supervise.world import World
from mres.train.callbacks.profile import ProfileWindows
from mres.train.config import TrainConfig

BATCH = Batch(*(torch.zeros(1) for _ in range(4)))


def world(rank: int = 0, size: int = 2) -> World:
    return World(rank, size, rank, size, torch.device("cpu"))


def test_a_window_of_a_real_run_and_its_rates(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    done = run(TRAIN, ["--config", str(config), "train.steps=5", "train.profile=[2,3]"], tmp_path)
    assert done.codes == [0], done.output
    run_dir = tmp_path / "runs" / "run"
    (path,) = (run_dir / "profile").iterdir()
    assert path.name == "rank-00000-steps-2-3.json.gz"
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    assert {"aten::linear", "Optimizer.step#AdamW.step"} & {event.get("name") for event in events}
    assert len([e for e in events if str(e.get("name")).startswith("Optimizer.step")]) == 2, "two steps"
    slowest = max(line["step_s"] for line in lines(run_dir / "metrics.jsonl"))
    assert slowest < 60, "writing the trace is no part of a step"


@pytest.mark.parametrize(
    ("rank", "chosen", "steps", "name"),
    [
        (0, (0,), range(1, 9), "rank-00000-steps-3-5.json.gz"),
        (1, (0, 1), range(1, 9), "rank-00001-steps-3-5.json.gz"),
        (0, (0,), range(4, 9), "rank-00000-steps-4-5.json.gz"),  # a run that goes on in the middle of it
        (0, (0,), range(1, 5), "rank-00000-steps-3-4.json.gz"),  # one that is stopped in the middle of it
        (1, (0,), range(1, 9), None),
        (0, (0,), range(6, 9), None),
    ],
)
def test_who_writes_which_steps(
    tmp_path: Path, rank: int, chosen: tuple[int, ...], steps: range, name: str | None
) -> None:
    config = TrainConfig.model_validate({"profile": (3, 5), "profile_ranks": chosen})
    windows = ProfileWindows(config, tmp_path, world(rank), last_step=8)
    for step in steps:
        windows.before_step(step)
        windows.after_step(step, BATCH)
    windows.close()
    assert [path.name for path in tmp_path.glob("profile/*")] == ([name] if name else [])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"profile": (3, 9)}, r"train.profile=\[3, 9\] goes beyond the run's last step 8"),
        ({"profile": (3, 5), "profile_ranks": (0, 2)}, "names rank 2, and the ranks are 0 to 1"),
        ({"memory_snapshot": (3, 5)}, "train.memory_snapshot records the memory of a GPU, and there is none here"),
    ],
)
def test_windows_that_cannot_be(tmp_path: Path, values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ProfileWindows(TrainConfig.model_validate(values), tmp_path, world(), last_step=8)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.profile=[0,3]", r"profile=\[0, 3\] must be \[first, last\]"),
        ("train.memory_snapshot=[5,3]", r"memory_snapshot=\[5, 3\] must be \[first, last\]"),
        ("train.profile_ranks=[1]", r"profile_ranks=\[1\] has an effect with profile or memory_snapshot only"),
    ],
)
def test_wrong_values_are_found_in_the_config(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(None, [override])
    with pytest.raises(UserError, match="must name ranks"):
        load_config(None, ["train.profile=[1,2]", "train.profile_ranks=[-1]"])
