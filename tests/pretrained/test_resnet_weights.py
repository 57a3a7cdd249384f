"""CRIS's towers out of the files of CLIP's RN50 and RN101, made small by the genuine library.

Shapes: B images, X texts, S side, T tokens, N places of the last stage's map, D its channels, J joint width.
"""

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from clip_files import LENGTH, SIDE, TEXT, VOCABULARY, WIDTH, openai_of, text_tokens, write_archive, write_clip
from safetensors.torch import save_file
from tiny_run import TRAIN, run, tiny_config
from torch import Tensor, nn

from mres.checkpoint.opening import open_weights
from mres.formats.folder import CheckpointError
from mres.model.cris.config import CrisConfig
from mres.model.cris.cris import CRIS
from mres.model.unires.config import UniresConfig
from mres.pretrained.match import copy_into
from mres.pretrained.tower import match_tower

JOINT = 48
FORMS = ("archive", "openai", "open_clip.pt", "open_clip.safetensors")


def config_of(side: int = SIDE, **changes: object) -> CrisConfig:
    text = {"text_width": WIDTH, "text_depth": 3, "text_vocab_size": VOCABULARY, "text_length": 12, "quick_gelu": True}
    vision = {"vision_width": 4, "vision_layers": (1, 2, 1, 1), "vision_positions": side // 32, "joint_width": JOINT}
    return CrisConfig.model_validate({"image_size": 64, **text, **vision, **changes})


def resnet_clip(side: int = SIDE) -> nn.Module:
    """As after training: every value, of BatchNorm's statistics too, is one that no model starts with."""
    clip = open_clip.CLIP(JOINT, {"layers": [1, 2, 1, 1], "width": 4, "image_size": side}, TEXT, quick_gelu=True)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in clip.state_dict().items():
            if value.is_floating_point():
                noise = 0.1 * torch.randn(value.shape, generator=draw)
                value.add_(noise.abs() if name.endswith("running_var") else noise)
            elif name.endswith("num_batches_tracked"):
                value.fill_(1234)
    return clip.eval()


def written(form: str, folder: Path) -> tuple[Path, nn.Module]:
    path, clip = folder / form, resnet_clip()
    if form == "archive":
        return write_archive(openai_of(clip), path), open_clip.load_openai_model(str(path), "fp32", "cpu")
    if form == "openai":
        torch.save(openai_of(clip).state_dict(), path)
        return path, open_clip.load_openai_model(str(path), "fp32", "cpu")
    if form == "open_clip.safetensors":
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in clip.state_dict().items()}}, path)
    return path, clip


def loaded(path: Path, config: CrisConfig) -> CRIS:
    model = CRIS(config).eval()
    for which in ("image", "text"):
        copy_into(model, match_tower(which, model, config, path))
    return model


def texts() -> Tensor:
    text_XT = torch.zeros(3, LENGTH, dtype=torch.int)
    for x in range(3):
        text_XT[x, : 4 + x] = torch.tensor([1022, *range(5, 7 + x), 1023])
    return text_XT


@pytest.mark.parametrize("form", FORMS)
def test_both_towers_compute_what_the_clips_own_do(form: str, tmp_path: Path) -> None:
    path, clip = written(form, tmp_path)
    model, image_BCSS = loaded(path, config_of()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stages = clip.visual.forward_intermediates(image_BCSS, indices=[2, 3, 4], intermediates_only=True)
        c3, c4, c5_BDhw = stages["image_intermediates"]
        mine = model.vision(image_BCSS)
        torch.testing.assert_close(mine[:2], (c3, c4), rtol=0, atol=0)
        tower = model.vision.tower
        torch.testing.assert_close(tower.layer4(mine[1]), c5_BDhw, rtol=0, atol=0)
        words_XTE, sentence_XJ = text_tokens(clip, texts()), clip.encode_text(texts())
        mine_words, mine_sentence, _ = model.text(texts()[None, :, :12])
        torch.testing.assert_close(mine_words[0], words_XTE[:, :12], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine_sentence[0], sentence_XJ, rtol=1e-4, atol=1e-5)
    assert tower.bn1.num_batches_tracked == 1234


def test_the_attention_pool_is_clips_from_every_place(tmp_path: Path) -> None:
    """CLIP's own asks from the mean of all places; here every place asks, at the same keys but for the mean's."""
    clip, path = resnet_clip(side=64), tmp_path / "clip.safetensors"
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    pool, map_BDhw = clip.visual.attnpool, torch.randn(2, 128, 2, 2)
    model = loaded(path, config_of(side=64))
    x_NBD = map_BDhw.flatten(2).permute(2, 0, 1) + pool.positional_embedding[1:, None]
    with torch.no_grad():
        expected_NBJ, _ = F.multi_head_attention_forward(
            x_NBD, x_NBD, x_NBD, 128, pool.num_heads, None, torch.cat([p.bias for p in (pool.q_proj, pool.k_proj, pool.v_proj)]),
            None, None, False, 0.0, pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True,
            q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        )  # fmt: skip
        torch.testing.assert_close(model.vision._pooled(map_BDhw).flatten(2), expected_NBJ.permute(1, 2, 0))


@pytest.mark.parametrize(("size", "name"), [("r50", "RN50"), ("r101", "RN101")])
def test_the_released_towers_have_these_shapes(size: str, name: str) -> None:
    config = open_clip.get_model_config(name)
    config["text_cfg"]["context_length"] = 17
    with torch.device("meta"):
        clip, model = open_clip.CLIP(**config), CRIS(CrisConfig(size=size))
    theirs = {name: value.shape for name, value in clip.state_dict().items() if name != "logit_scale"}
    mine = {f"visual.{n}": value.shape for n, value in model.vision.tower.state_dict().items()}
    mine |= {n: value.shape for n, value in model.text.tower.state_dict().items()}
    assert mine == theirs


def test_a_tower_that_does_not_fit_is_refused_by_its_keys(tmp_path: Path) -> None:
    path, _ = written("open_clip.safetensors", tmp_path)
    config = config_of(vision_width=8, vision_layers=(1, 1, 1, 1), joint_width=64)
    model = CRIS(config)
    with pytest.raises(CheckpointError) as image:
        match_tower("image", model, config, path)
    for key in ("model.vision_width=4", "model.vision_layers=[1, 2, 1, 1]", f"model.joint_width={JOINT}"):
        assert key in str(image.value)
    with pytest.raises(CheckpointError, match=f"model.joint_width={JOINT}"):
        match_tower("text", model, config, path)


def test_a_vit_is_no_resnet_and_a_resnet_no_vit(tmp_path: Path) -> None:
    vit, _ = write_clip("open_clip.safetensors", tmp_path)
    config = config_of()
    with pytest.raises(CheckpointError, match="no CLIP ResNet"):
        match_tower("image", CRIS(config), config, vit)
    resnet, _ = written("open_clip.pt", tmp_path)
    with pytest.raises(CheckpointError, match="no ViT"):
        match_tower("image", nn.Module(), UniresConfig(), resnet)


@pytest.mark.slow
def test_a_run_starts_from_openais_archive(tmp_path: Path, tiny_shards: Path) -> None:
    """Frozen, the towers stay what they were, sharded too; BatchNorm's count goes on from the file's."""
    path, _ = written("archive", tmp_path)
    config = config_of()
    keys = [f"checkpoint.text_weights={path}", f"checkpoint.image_weights={path}", "optim.freeze=[vision.tower,text]"]
    written_config = tmp_path / "cris.yaml"
    written_config.write_text(yaml.safe_dump({**tiny_config(tiny_shards), "model": config.model_dump(mode="json")}))
    words = ["--config", str(written_config), "parallel.strategy=fsdp", "train.steps=2", *keys]
    done = run(TRAIN, words, tmp_path, world_size=2)
    assert done.codes == [0, 0], done.outputs
    assert done.output.count("(OpenAI CLIP, TorchScript archive)") == 2
    model = CRIS(config)
    expected = dict(match_tower("text", model, config, path)) | dict(match_tower("image", model, config, path))
    saved = dict(open_weights(tmp_path / "runs" / "run").weights)
    still = {name for name, _ in model.named_parameters() if name.startswith(("vision.tower.", "text."))}
    assert still <= expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in still)
    assert saved["vision.tower.bn1.num_batches_tracked"] == 1236
    assert saved["vision.shortcut.1.num_batches_tracked"] == 2
