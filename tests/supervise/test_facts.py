"""What tells two runs apart: models, configs, and code that no commit names."""

from pathlib import Path

import torch
from torch import nn

from mres.config import load_config
from mres.model.task import SegmentationTask
from mres.stream.loader import TrainingStream
from mres.stream.sets import TrainingSets
from mres.supervise import facts as run_facts


def test_a_model_of_other_names_shapes_or_frozen_parts_is_another() -> None:
    def facts(*layers: nn.Module) -> dict[str, str | None]:
        return run_facts.facts_of_model(nn.Sequential(*layers))

    base = facts(nn.Linear(2, 3), nn.Linear(3, 2))
    assert facts(nn.Linear(2, 3), nn.Linear(3, 2)) == base, "values do not enter"
    other = facts(nn.Linear(2, 3), nn.Linear(3, 4))
    assert [key for key in base if base[key] != other[key]] == ["model.1 (hash of names and shapes)"]
    assert facts(nn.Linear(2, 3), nn.Linear(3, 2).requires_grad_(False)) != base
    assert facts(nn.Linear(2, 3), nn.Linear(3, 2, dtype=torch.float64)) != base


def test_another_content_of_the_ds_config_is_another_config(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    config = load_config(None, ["parallel.strategy=zero", f"parallel.ds_config={file}"])
    assert run_facts.ds_config_sha256(config) is None
    found = set()
    for content in ("{}", "{ }", "{}"):
        file.write_text(content)
        found.add((run_facts.config_sha256(config), run_facts.ds_config_sha256(config)))
    assert len(found) == 2
    assert len({of_all for of_all, _ in found}) == 2


def test_another_content_of_a_users_file_is_another_run(tmp_path: Path, tiny_shards: Path) -> None:
    file = tmp_path / "own.py"
    config = load_config(None, [f"data.train={tiny_shards}", f"train.callbacks=[{file}:Own]"])
    sets = TrainingSets.open(config.data)
    task = SegmentationTask(config.model, config.loss)
    stream = TrainingStream(sets, config.data, task.shape, task.tokenizer, seed=0, rank=0, world_size=1)
    found = []
    for content in ("class Own: ...\n", "class Own:\n    pass\n"):
        file.write_text(content)
        found.append(run_facts.facts_of_run(config, stream, 10, 1))
    assert [key for key in found[0] if found[0][key] != found[1][key]] == [f"{file}:Own (SHA-256 of its file)"]
