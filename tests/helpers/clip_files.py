"""Tiny CLIPs and ViTs with random weights, built and written by the genuine libraries in all of their forms.

Shapes: X texts, B images, T tokens, N patches, S side, E text width, D width of the image tower.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mres.model.text import TextEncoder
from mres.model.unires.config import UniresConfig
from mres.model.unires.vision import VisionEncoder
from mres.pretrained.described import Tower
from mres.pretrained.match import copy_into
from mres.pretrained.report import Restored
from mres.pretrained.tower import match_tower

WIDTH, HEADS, LENGTH, VOCABULARY, SIDE, PATCH = 128, 2, 24, 1024, 32, 8  # OpenAI's heads are 64 wide
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": 3}
VISION = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "head_width": 64, "layers": 2}
TIMM = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 5}
FORMS = ("archive", "openai", "open_clip.pt", "open_clip.safetensors", "custom", "transformers", "shards", "bin")


def config_of(**changes: Any) -> UniresConfig:
    """The model whose towers these are."""
    text = {"text_width": WIDTH, "text_heads": HEADS, "text_depth": 3, "text_vocab_size": VOCABULARY, "text_length": 12}
    vision = {"vision_width": WIDTH, "vision_heads": HEADS, "vision_depth": 2, "vision_mlp_ratio": 4.0}
    like = {"vision_class_token": True, "vision_pre_norm": True, "quick_gelu": True, "stem": "patch"}
    sizes = {"image_size": SIDE, "patch_size": PATCH, "low_group_tokens": 3, "high_group_tokens": 2}
    return UniresConfig.model_validate({"size": "tiny", **text, **vision, **like, **sizes, **changes})


class Towers(nn.Module):
    """As much of UniRES as there is to load."""

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        self.text = TextEncoder(
            width=config.text_width, depth=config.text_depth, heads=config.text_heads, vocab_size=config.text_vocab_size,
            length=config.text_length, quick_gelu=config.quick_gelu,
        )  # fmt: skip
        self.vision = VisionEncoder(config)
        self.eval()


def load_tower(which: Tower, model: nn.Module, config: UniresConfig, source: Path) -> Restored:
    return copy_into(model, match_tower(which, model, config, source))


def shaken(model: nn.Module) -> nn.Module:
    """As after training: no bias is zero, no norm's weight is one."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.mean() + 0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def open_clip_of(kind: str = "CLIP", side: int = SIDE, *, quick_gelu: bool = True, **vision: Any) -> nn.Module:
    make = getattr(open_clip, kind)
    return shaken(make(16, {**VISION, "image_size": side, **vision}, TEXT, quick_gelu=quick_gelu))


def transformers_of(act: str = "quick_gelu", **sizes: Any) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    both = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "hidden_act": act}
    text = {"num_hidden_layers": 3, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, **both}
    vision = {"num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH, **both, **sizes}
    return shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))


def timm_of(name: str = "vit_base_patch16_224", **arguments: Any) -> nn.Module:
    return shaken(timm.create_model(name, pretrained=False, **{**TIMM, **arguments}))


def openai_of(clip: nn.Module) -> nn.Module:
    """As OpenAI releases it: half precision but for norms and embeddings, sizes as buffers, the mask as a constant."""
    from open_clip.model import convert_weights_to_fp16

    convert_weights_to_fp16(clip)
    mask = clip._buffers.pop("attn_mask")
    clip.attn_mask = mask
    sizes = {"input_resolution": SIDE, "context_length": LENGTH, "vocab_size": VOCABULARY}
    for name, value in sizes.items():
        clip.__dict__.pop(name, None)
        clip.register_buffer(name, torch.tensor(value))
    return clip


def write_archive(clip: nn.Module, path: Path) -> Path:
    image_BCSS, text_XT = torch.ones(1, 3, SIDE, SIDE).half(), torch.ones(1, LENGTH, dtype=torch.int)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = {"encode_image": (image_BCSS,), "encode_text": (text_XT,)}
        torch.jit.save(torch.jit.trace_module(clip, traced, check_trace=False), path)
    return path


def write_clip(form: str, folder: Path) -> tuple[Path, nn.Module]:
    """A file or folder in one of FORMS, and the library's own model of it."""
    if form in ("transformers", "shards", "bin"):
        clip = transformers_of()
        limit = "300KB" if form == "shards" else "5GB"
        clip.save_pretrained(folder / form, max_shard_size=limit, safe_serialization=form != "bin")
        return (folder / form / "pytorch_model.bin" if form == "bin" else folder / form), clip
    clip = open_clip_of("CustomTextCLIP" if form == "custom" else "CLIP")
    path = folder / {"archive": "ViT.pt", "openai": "state.pt", "custom": "custom.pt"}.get(form, form)
    if form == "archive":
        return write_archive(openai_of(clip), path), open_clip.load_openai_model(str(path), "fp32", "cpu")
    if form == "openai":
        torch.save(openai_of(clip).state_dict(), path)
        return path, open_clip.load_openai_model(str(path), "fp32", "cpu")
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    else:  # as open_clip's training writes it, wrapped in DDP and with what belongs to the run
        state = {f"module.{name}": value for name, value in clip.state_dict().items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    return path, clip


def text_tokens(clip: nn.Module, text_XT: Tensor) -> Tensor:
    """Every word's state by the library's own modules, without the projection: words_XTE."""
    if hasattr(clip, "text_model"):
        return clip.text_model(text_XT).last_hidden_state
    tower = clip.text if hasattr(clip, "text") else clip
    length = text_XT.shape[1]
    x_XTE = tower.token_embedding(text_XT) + tower.positional_embedding[:length]
    return tower.ln_final(tower.transformer(x_XTE, attn_mask=tower.attn_mask[:length, :length]))


def image_tokens(model: nn.Module, image_BCSS: Tensor) -> Tensor:
    """Every patch's state by the library's own functions, after the last norm: patches_BND."""
    if hasattr(model, "vision_model"):
        vision = model.vision_model
        return vision.post_layernorm(vision(image_BCSS, interpolate_pos_encoding=True).last_hidden_state)[:, 1:]
    if hasattr(model, "visual"):
        options = {"normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
        return model.visual.forward_intermediates(image_BCSS, indices=1, **options)["image_intermediates"][0]
    return model.forward_features(image_BCSS)[:, model.num_prefix_tokens :]


def edited_archive(source: Path, target: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """The zip file with its records changed, each valid for itself."""
    from zipfile import ZipFile

    with ZipFile(source) as old, ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return target


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
