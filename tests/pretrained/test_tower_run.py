"""A real run that starts from a CLIP: its towers, frozen, are in the checkpoint as they were in the file."""

from pathlib import Path

import pytest
import torch
from clip_files import config_of, write_clip
from tiny_model import outline
from tiny_run import TRAIN, run, write_config

from mres.checkpoint.opening import open_weights
from mres.pretrained.tower import match_tower


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero", marks=pytest.mark.exhaustive)])
def test_both_towers_of_openais_archive_under_sharding(tmp_path: Path, tiny_shards: Path, strategy: str) -> None:
    path, _ = write_clip("archive", tmp_path)
    config = config_of(image_size=48)
    model = [f"model.{key}={str(value).lower()}" for key, value in config.model_dump().items() if value is not None]
    keys = [f"checkpoint.text_weights={path}", f"checkpoint.image_weights={path}", "optim.freeze=[vision,text]"]
    words = ["--config", str(write_config(tmp_path, tiny_shards)), f"parallel.strategy={strategy}", "train.steps=2"]
    done = run(TRAIN, [*words, *model, *keys], tmp_path, world_size=2)
    assert done.codes == [0, 0], done.outputs
    assert done.output.count("(OpenAI CLIP, TorchScript archive)") == 2
    assert "interpolated from 4×4 to 6×6" in done.output
    model = outline(config)
    expected = dict(match_tower("text", model, config, path)) | dict(match_tower("image", model, config, path))
    saved = dict(open_weights(tmp_path / "runs" / "run" / "checkpoints" / "step-00000002").weights)
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    assert {name for name in saved if name.startswith(("text.", "vision.vit."))} == expected.keys()
