"""CLIP's text tower out of checkpoints that open_clip itself writes.

Shapes: X texts, T tokens, E text width.
"""

import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mres.checkpoint.pretrained import load_text_weights
from mres.checkpoint.store import CheckpointError
from mres.model.config import ModelConfig
from mres.model.text import TextEncoder, Tokenizer

WIDTH, HEADS, DEPTH, LENGTH, VOCABULARY = 32, 2, 3, 24, 1024
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": DEPTH}
TEXTS = ("the left wheel of the blue car", "a tree", "person " * 40)


def config(**changes: object) -> ModelConfig:
    sizes = {"text_width": WIDTH, "text_heads": HEADS, "text_depth": DEPTH, "text_vocab_size": VOCABULARY}
    return ModelConfig.model_validate({"size": "tiny", "text_length": 12, **sizes, **changes})


class Model(nn.Module):
    """As much of UniRES as there is to load."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.text = TextEncoder(model)


@pytest.fixture(scope="module")
def clips() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {
        "CLIP": open_clip.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT),
        "CustomTextCLIP": open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT),
        "quick": open_clip.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True),
    }
    for clip in made.values():
        for parameter in clip.parameters():  # as after training: no bias is zero, no norm's weight is one
            nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return made


def write(clip: nn.Module, path: Path) -> Path:
    """As open_clip's training writes it, wrapped in DDP and with what belongs to the run."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    else:
        state = {f"module.{name}": value for name, value in clip.state_dict().items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def text_tower_of(clip: nn.Module, text_XT: Tensor) -> tuple[Tensor, Tensor]:
    """The genuine library's own text tower, without its projection: sentence_XE, words_XTE."""
    tower = clip.text if hasattr(clip, "text") else clip
    length = text_XT.shape[1]
    x_XTE = tower.token_embedding(text_XT) + tower.positional_embedding[:length]
    words_XTE = tower.ln_final(tower.transformer(x_XTE, attn_mask=tower.attn_mask[:length, :length]))
    return words_XTE[torch.arange(len(text_XT)), text_XT.argmax(-1)], words_XTE


@pytest.mark.parametrize("name", ["clip.pt", "clip.safetensors"])
@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP", "quick"])
def test_the_tower_computes_what_open_clips_does(
    clips: dict[str, nn.Module], kind: str, name: str, tmp_path: Path
) -> None:
    clip = clips[kind].eval()
    model = Model(config(quick_gelu=kind == "quick")).eval()
    restored = load_text_weights(model, write(clip, tmp_path / name))
    text_XT, num_cut = Tokenizer(VOCABULARY, 12)(TEXTS)
    assert num_cut
    with torch.no_grad():
        words_X1TE, sentence_X1E, _ = model.text(text_XT[:, None])
        expected_XE, expected_XTE = text_tower_of(clip, text_XT)
        torch.testing.assert_close(words_X1TE[:, 0], expected_XTE, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sentence_X1E[:, 0], expected_XE, rtol=1e-4, atol=1e-5)
        if kind == "CLIP":  # and with the library's own function, on texts of its own length
            own_XT, _ = Tokenizer(VOCABULARY, LENGTH)(TEXTS)
            full = Model(config(text_length=LENGTH)).eval()
            load_text_weights(full, tmp_path / name)
            _, sentence_X1E, _ = full.text(own_XT[:, None])
            projected_XC = sentence_X1E[:, 0] @ clip.text_projection
            torch.testing.assert_close(projected_XC, clip.encode_text(own_XT), rtol=1e-4, atol=1e-5)
    assert restored.tensors == restored.all_tensors == len(list(model.parameters()))


def test_what_came_and_what_did_not_is_said(clips: dict[str, nn.Module], tmp_path: Path) -> None:
    model = Model(config())
    restored = load_text_weights(model, write(clips["CLIP"], tmp_path / "clip.pt"))
    num_visual = sum(name.startswith("visual.") for name in clips["CLIP"].state_dict())
    assert set(restored.left_behind) == {
        "text_projection",
        "logit_scale",
        f"visual.* ({num_visual} tensors)",
        "positional_embedding[12:24]",
    }
    text = str(restored)
    assert f"restored {restored.tensors} of {restored.tensors} tensors (100.0 %)" in text
    assert "bytes (100.0 %)" in text
    assert "left behind: " in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_width": 64, "text_heads": 2}, r"text_width 32 \(the model's is 64\); set model.text_width=32"),
        ({"text_depth": 2}, r"text_depth 3 \(the model's is 2\); set model.text_depth=3"),
        ({"text_vocab_size": 2048}, "set model.text_vocab_size=1024"),
        ({"text_length": 30}, r"text_length 24 \(the model's is 30\)"),
    ],
)
def test_another_size_is_named_with_the_remedy(
    clips: dict[str, nn.Module], changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_text_weights(Model(config(**changes)), write(clips["CLIP"], tmp_path / "clip.pt"))


def test_a_file_without_a_text_tower_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt' has no CLIP text tower"):
        load_text_weights(Model(config()), tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list.pt' has no CLIP text tower"):
        load_text_weights(Model(config()), tmp_path / "list.pt")


def test_a_tower_with_a_tensor_missing_is_refused(clips: dict[str, nn.Module], tmp_path: Path) -> None:
    state = clips["CLIP"].state_dict()
    del state["transformer.resblocks.1.mlp.c_fc.bias"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing \['transformer.resblocks.1.mlp.c_fc.bias'\]"):
        load_text_weights(Model(config()), tmp_path / "clip.pt")


@pytest.mark.parametrize("name", ["no.pt", "no.safetensors"])
def test_unreadable_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no such file: '.*{name}'"):
        load_text_weights(Model(config()), tmp_path / name)
    (tmp_path / name).write_bytes(b"not tensors" * 100)
    with pytest.raises(CheckpointError, match=f"{name}' .* read"):
        load_text_weights(Model(config()), tmp_path / name)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_bomb_is_refused_and_never_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "owned")}, tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "owned"), protocol=2))
    for name in ("bomb.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match=f"{name}' cannot be read as tensors only"):
            load_text_weights(Model(config()), tmp_path / name)
    assert not (tmp_path / "owned").exists()
