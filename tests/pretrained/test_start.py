"""What a new run begins with: its seed's values, a file's, or the seed's with a text tower from a file."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import outline
from tiny_run import MODEL
from torch import Tensor

from mres.config import Config, load_config
from mres.errors import UserError
from mres.model.initial import initial_weights
from mres.model.task import SegmentationTask
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW, Strategy
from mres.pretrained.start import check_finite, first_weights
from mres.supervise.world import join_world, leave_world
from mres.train.optim import parameter_groups


def config_of(*overrides: str) -> Config:
    model = [f"model.{key}={value}" for key, value in MODEL.items()]
    return load_config(None, [*model, "parallel.strategy=single", "train.steps=10", "run.seed=5", *overrides])


def first_of(config: Config, say: Callable[[str], None]) -> Iterable[tuple[str, Tensor]]:
    task = SegmentationTask(config.model, config.loss)
    return first_weights(task, task.outline(), config, say)


def values(seed: int) -> dict[str, Tensor]:
    return dict(initial_weights(outline(config_of().model), seed))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A CLIP checkpoint with the text tower of another seed."""
    tower = {n.removeprefix("text.tower."): v for n, v in values(6).items() if n.startswith("text.tower.")}
    path = tmp_path / "clip.safetensors"
    save_file({**tower, "visual.proj": torch.zeros(2)}, path)
    return path


@pytest.fixture
def strategy() -> Iterator[Strategy]:
    """With a model that has memory and no values."""
    config = config_of()
    strategy = build_strategy(config.parallel, join_world(config.parallel.timeout_s))
    model = outline(config.model)
    strategy.wrap(model, model.blocks(), parameter_groups(model, 0.0), AdamW((0.9, 0.999), 1e-8, 1.0))
    yield strategy
    leave_world()


def test_the_seed_alone() -> None:
    found, expected = dict(first_of(config_of(), print)), values(5)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_text_tower_takes_the_place_of_the_drawn_one(text_file: Path, strategy: Strategy) -> None:
    said: list[str] = []
    config = config_of(f"checkpoint.text_weights={text_file}")
    strategy.load_weights(first_of(config, said.append))
    drawn, theirs = values(5), values(6)
    for name, share in strategy.weight_shares():
        assert torch.equal(share, (theirs if name.startswith("text.tower.") else drawn)[name]), name
    assert "(100.0 %)" in said[0]
    assert "left behind: visual.* (1 tensor)" in said[0]


def test_weights_that_are_not_finite_are_named_with_their_file(tmp_path: Path, strategy: Strategy) -> None:
    tensors = values(6)
    tensors["head.kernel.weight"][1, 2] = torch.nan
    path = tmp_path / "broken.safetensors"
    save_file(tensors, path)
    config = config_of(f"checkpoint.init_from={path}")
    strategy.load_weights(first_of(config, print))
    with pytest.raises(UserError, match=r"1 weights from .*broken.safetensors are not finite: head.kernel.weight"):
        check_finite(strategy, str(path))
    strategy.load_weights(values(6).items())
    check_finite(strategy, str(path))


def test_both_towers_of_one_file_take_the_place_of_the_drawn_ones(tmp_path: Path, strategy: Strategy) -> None:
    """The group tokens, the stem and the decoder are UniRES's own, and keep the seed's values."""
    path = tmp_path / "timm.safetensors"
    vision = {n.removeprefix("vision.vit."): v for n, v in values(6).items() if n.startswith("vision.vit.")}
    save_file(vision, path)
    said: list[str] = []
    with pytest.raises(UserError, match=r"timm.safetensors' has no ViT \(patch_embed"):  # tiny has a stem in its place
        first_of(config_of(f"checkpoint.image_weights={path}"), said.append)
    patches = {"patch_embed.proj.weight": torch.ones(32, 3, 8, 8), "patch_embed.proj.bias": torch.ones(32)}
    save_file({**vision, **patches}, path)
    config = config_of(f"checkpoint.image_weights={path}", "model.stem=patch")
    found = dict(first_of(config, said.append))
    drawn = dict(initial_weights(outline(config.model), 5))
    assert found.keys() == drawn.keys()
    for name, value in found.items():
        inside = name.removeprefix("vision.vit.")
        expected = {**vision, **patches}[inside] if inside != name else drawn[name]
        assert torch.equal(value, expected), name
    assert "of the image tower" in said[0]


def test_a_run_at_another_resolution_starts_from_a_runs_weights(tmp_path: Path) -> None:
    path, said = tmp_path / "small.safetensors", list[str]()
    save_file(values(6), path)
    config = config_of(f"checkpoint.init_from={path}", "model.image_size=64", "model.text_length=10")
    found = dict(first_of(config, said.append))
    theirs = values(6)
    changed = {name for name, value in found.items() if value.shape != theirs[name].shape}
    assert changed == {"vision.vit.pos_embed", "text.tower.positional_embedding"}
    assert all(torch.equal(found[name], theirs[name]) for name in theirs.keys() - changed)
    assert "interpolated from 4×4 to 8×8" in said[0]
    assert "the first 10 of 14 positions" in said[0]


def test_what_a_source_lacks_keeps_the_seeds_value_where_it_may(tmp_path: Path) -> None:
    path, said = tmp_path / "part.safetensors", list[str]()
    save_file({name: value for name, value in values(6).items() if not name.startswith("head.")}, path)
    config = config_of(f"checkpoint.init_from={path}")
    with pytest.raises(UserError, match="tensors are missing"):
        first_of(config, said.append)
    config = config_of(f"checkpoint.init_from={path}", "checkpoint.strict=false")
    found = dict(first_of(config, said.append))
    drawn, theirs = values(5), values(6)
    for name, value in found.items():
        assert torch.equal(value, (drawn if name.startswith("head.") else theirs)[name]), name
    assert "keep their first values: head." in said[0]


@pytest.mark.parametrize("key", ["text_weights", "image_weights"])
def test_keys_without_effect_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"init_from=a and {key}=b are both given"):
        config_of("checkpoint.init_from=a", f"checkpoint.{key}=b")
    with pytest.raises(UserError, match="strict=false has an effect with init_from or text_weights"):
        config_of("checkpoint.strict=false")
