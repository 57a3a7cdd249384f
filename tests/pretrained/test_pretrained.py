"""Weights into a model, from all that a user may name."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mres.checkpoint.opening import open_weights
from mres.checkpoint.store import CheckpointError
from mres.config import load_config
from mres.convert.convert import convert
from mres.model.unires.config import UniresConfig
from mres.model.unires.unires import UniRES
from mres.pretrained.whole import load_weights, run_config

NAMES = ("single", "tied")


@pytest.fixture(scope="module")
def exports(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs exported, and their files once more, alone."""
    folder = tmp_path_factory.mktemp("exports")
    for name in NAMES:
        convert(runs / name, folder / name, "safetensors")
        shutil.copy(folder / name / "model.safetensors", folder / f"{name}.safetensors")
    return folder


def model_of(runs: Path, name: str, **changes: object) -> tuple[UniRES, UniresConfig]:
    values = load_config(runs / name / "config.yaml").model.model_dump()
    config = UniresConfig.model_validate({**values, **changes})
    return UniRES(config), config


def saved(runs: Path, name: str) -> dict[str, Tensor]:
    return dict(open_weights(runs / name / "checkpoints" / "step-00000002").weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "source",
    [
        "{runs}/{name}",
        "{runs}/{name}/checkpoints",
        "{runs}/{name}/checkpoints/step-00000002",
        "{exports}/{name}",
        "{exports}/{name}/model.safetensors",
        "{exports}/{name}.safetensors",
    ],
)
def test_weights_come_from_all_that_a_user_may_name(runs: Path, exports: Path, name: str, source: str) -> None:
    model, config = model_of(runs, name, dropout=0.2)  # which another training may change
    path = Path(source.format(runs=runs, exports=exports, name=name))
    restored = load_weights(model, config, path)
    expected = saved(runs, name)
    assert all(torch.equal(value, expected[key]) for key, value in model.named_parameters())
    assert (restored.tensors, restored.bytes) == (len(expected), sum(t.nbytes for t in expected.values()))
    assert "(100.0 %)" in str(restored)
    assert run_config(path) == load_config(runs / name / "config.yaml")


@pytest.mark.parametrize("source", ["{runs}/single", "{exports}/single", "{exports}/single.safetensors"])
def test_another_model_is_named(runs: Path, exports: Path, source: str) -> None:
    model, config = model_of(runs, "single", text_depth=2, high_group_tokens=5)
    with pytest.raises(
        CheckpointError, match=r"model.high_group_tokens was 3 and is now 5, model.text_depth was 1 and"
    ):
        load_weights(model, config, Path(source.format(runs=runs, exports=exports)))


@pytest.fixture
def foreign(exports: Path, tmp_path: Path) -> tuple[dict[str, Tensor], Path]:
    """Tensors of the tied model without a word about it, under both of their names."""
    tensors = load_file(exports / "tied.safetensors")
    twice = {
        name.replace("low_filter", "high_filter"): t.clone() for name, t in tensors.items() if "low_filter" in name
    }
    assert twice
    return {**tensors, **twice}, tmp_path / "foreign.safetensors"


def test_a_foreign_file_fits_or_not(runs: Path, foreign: tuple[dict[str, Tensor], Path]) -> None:
    tensors, path = foreign
    model, config = model_of(runs, "tied")
    save_file(tensors, path)
    load_weights(model, config, path)
    expected = saved(runs, "tied")
    assert all(torch.equal(value, expected[key]) for key, value in model.named_parameters())
    with pytest.raises(CheckpointError, match="does not say what model it is of"):
        run_config(path)

    save_file({name: t for name, t in tensors.items() if "low_filter" not in name}, path)  # the other name will do
    load_weights(model, config, path)

    tensors["high_filter.ffn.0.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"low_filter.ffn.0.weight and high_filter.ffn.0.weight are one tensor"):
        load_weights(model, config, path)


def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named(
    runs: Path, foreign: tuple[dict[str, Tensor], Path]
) -> None:
    tensors, path = foreign
    model, config = model_of(runs, "tied")
    before = {name: value.clone() for name, value in model.named_parameters()}
    bias = tensors.pop("patch_project.bias")
    save_file({**tensors, "patch_projekt.bias": bias}, path)
    with pytest.raises(
        CheckpointError, match=r"missing \['patch_project.bias'\], 1 are unknown \['patch_projekt.bias'\]"
    ):
        load_weights(model, config, path)
    save_file({**tensors, "patch_project.bias": bias[:-1].clone()}, path)
    with pytest.raises(CheckpointError, match=r"patch_project.bias has shape \[31\], the model's is \[32\]"):
        load_weights(model, config, path)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters()), "all or nothing"


def test_a_damaged_export_is_refused(runs: Path, exports: Path, tmp_path: Path) -> None:
    model, config = model_of(runs, "single")
    folder = Path(shutil.copytree(exports / "single", tmp_path / "export"))
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    for source in (folder, file):
        with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
            load_weights(model, config, source)
    (folder / "MANIFEST.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no MANIFEST.json .* name '.*/export/model.safetensors' to take it as it is"
    ):
        load_weights(model, config, folder)
    load_weights(model, config, file)
    file.write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match="is not a safetensors file that can be read"):
        load_weights(model, config, file)
