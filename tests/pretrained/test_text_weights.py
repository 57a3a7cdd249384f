"""CLIP's text tower out of the files of OpenAI, open_clip and Hugging Face.

Shapes: X texts, T tokens, E text width.
"""

import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from clip_files import (
    FORMS,
    LENGTH,
    TEXT,
    VISION,
    VOCABULARY,
    Towers,
    config_of,
    load_tower,
    open_clip_of,
    text_tokens,
    write_clip,
)
from torch import nn

from mres.checkpoint.store import CheckpointError
from mres.model.text import Tokenizer

TEXTS = ("the left wheel of the blue car", "a tree", "person " * 40)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip("open_clip.pt", tmp_path_factory.mktemp("clip"))[0]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_tower_computes_what_the_librarys_own_does(form: str, tmp_path: Path) -> None:
    path, clip = write_clip(form, tmp_path)
    config = config_of()
    model = Towers(config)
    restored = load_tower("text", model, config, path)
    text_XT, num_cut = Tokenizer(VOCABULARY, 12)(TEXTS)
    assert num_cut
    words_X1TE, sentence_X1E, _ = model.text(text_XT[:, None])
    expected_XTE = text_tokens(clip, text_XT)
    torch.testing.assert_close(words_X1TE[:, 0], expected_XTE, rtol=1e-5, atol=1e-5)
    expected_XE = expected_XTE[torch.arange(len(TEXTS)), text_XT.argmax(-1)]
    torch.testing.assert_close(sentence_X1E[:, 0], expected_XE, rtol=1e-5, atol=1e-5)
    assert restored.tensors == restored.all_tensors == len(list(model.text.parameters()))


@torch.no_grad()
def test_the_whole_length_computes_what_encode_text_does(tmp_path: Path) -> None:
    path, clip = write_clip("archive", tmp_path)
    config = config_of(text_length=LENGTH)
    model = Towers(config)
    assert not load_tower("text", model, config, path).changed
    text_XT, _ = Tokenizer(VOCABULARY, LENGTH)(TEXTS)
    _, sentence_X1E, _ = model.text(text_XT[:, None])
    torch.testing.assert_close(
        sentence_X1E[:, 0] @ clip.text_projection, clip.encode_text(text_XT), rtol=1e-5, atol=1e-5
    )


def test_what_came_and_what_did_not_is_said(clip_file: Path) -> None:
    config = config_of()
    restored = load_tower("text", Towers(config), config, clip_file)
    num_visual = len(list(open_clip_of().visual.state_dict()))
    others = {"epoch", "name", "optimizer"}
    assert set(restored.left_behind) == {"text_projection", "logit_scale", f"visual.* ({num_visual} tensors)", *others}
    text = str(restored)
    assert f"restored {restored.tensors} of {restored.tensors} tensors (100.0 %)" in text
    assert "bytes (100.0 %) of the text tower" in text
    assert "(open_clip CLIP, torch.save)" in text
    assert "changed: positional_embedding: the first 12 of 24 positions" in text
    assert "left behind: " in text
    assert "does not say whether model.text_heads and model.quick_gelu are its own" in text
    assert sum(group.tensors for group in restored.groups) == restored.tensors
    assert sum(group.bytes for group in restored.groups) == restored.bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_width": 64}, r"text_width 128 \(the model's is 64\); set model.text_width=128"),
        ({"text_depth": 2}, r"text_depth 3 \(the model's is 2\); set model.text_depth=3"),
        ({"text_vocab_size": 2048}, "set model.text_vocab_size=1024"),
        ({"text_length": 30}, r"text_length 24 \(the model's is 30\)"),
    ],
)
def test_another_size_is_named_with_the_remedy(clip_file: Path, changes: dict[str, int], message: str) -> None:
    config = config_of(**changes)
    with pytest.raises(CheckpointError, match=message):
        load_tower("text", Towers(config), config, clip_file)


def test_a_file_without_a_text_tower_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt' has no CLIP text tower"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list.pt' has no CLIP text tower"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "list.pt")


def test_a_tower_with_a_tensor_missing_is_refused(tmp_path: Path) -> None:
    state = open_clip_of().state_dict()
    del state["transformer.resblocks.1.mlp.c_fc.bias"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing \['transformer.resblocks.1.mlp.c_fc.bias'\]"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "clip.pt")


@pytest.mark.parametrize("name", ["no.pt", "no.safetensors"])
def test_unreadable_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no such file: '.*{name}'"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / name)
    (tmp_path / name).write_bytes(b"not tensors" * 100)
    with pytest.raises(CheckpointError, match=f"{name}' .* read"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / name)


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
            load_tower("text", Towers(config_of()), config_of(), tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_siglip_is_not_clip(tmp_path: Path) -> None:
    """Its words see those after them, with tensors of the same names and shapes."""
    siglip = open_clip.CustomTextCLIP(16, VISION, {**TEXT, "no_causal_mask": True}, init_logit_bias=-10.0)
    torch.save(siglip.state_dict(), tmp_path / "siglip.pt")
    with pytest.raises(CheckpointError, match=r"siglip.pt' is SigLIP's \(logit_bias\)"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "siglip.pt")
