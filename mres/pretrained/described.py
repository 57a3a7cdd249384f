"""What tensors do not say of a tower (heads, activation, epsilon), from the config that a library puts beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mres.formats.folder import CheckpointError
from mres.io.json_files import JsonError, read_json

Tower = Literal["text", "image"]
# A hub's names for a file → for the config beside it.
_BESIDE = {
    "model.safetensors": "config.json",
    "pytorch_model.bin": "config.json",
    "open_clip_model.safetensors": "open_clip_config.json",
    "open_clip_pytorch_model.bin": "open_clip_config.json",
}
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# Of Hugging Face's CLIPTextConfig and CLIPVisionConfig, which write only what differs from these.
_HF_HEADS = {"text": 8, "image": 12}
# Of open_clip's towers, what computes something else with tensors of the same names.
_OPEN_CLIP_OTHERWISE = ("no_causal_mask", "hf_model_name", "hf_tokenizer_name", "norm_kwargs", "act_kwargs")
_MEAN = (0.481, 0.458, 0.408)  # CLIP's, with which mres normalises images


@dataclass(frozen=True, slots=True)
class Description:
    """`sizes`: what the tower's config says, by neutral names; `obstacles`: what no model of mres can be; both are empty
    where nothing is known. `where` it is written."""

    where: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe(path: Path, tower: Tower, width: int, *, openai: bool) -> Description:
    """Of a file or folder of weights.

    Args:
        openai: the tensors are marked as OpenAI's, whose towers have one activation and heads of one width.

    Raises:
        CheckpointError: a config beside them that cannot be read.
    """
    found = _config_beside(path)
    if found is not None:
        name, config = found
        for is_of, read in _LIBRARIES:
            if is_of(config):
                try:
                    return read(config, tower, width, name)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise CheckpointError(f"'{name}' cannot be understood: {error!r}") from None
    if openai:
        return Description("OpenAI's CLIP", {"heads": max(1, width // 64), "quick_gelu": True})
    return Description()


def _config_beside(path: Path) -> tuple[str, dict[str, Any]] | None:
    names = dict.fromkeys(_BESIDE.values()) if path.is_dir() else [_BESIDE[path.name]] if path.name in _BESIDE else []
    folder = path if path.is_dir() else path.parent
    for name in names:
        if (folder / name).is_file():
            try:
                config = read_json(folder / name)
            except JsonError as error:
                raise CheckpointError(str(error)) from None
            return (str(folder / name), config) if isinstance(config, dict) else None
    return None


def _from_transformers(config: dict[str, Any], tower: Tower, width: int, where: str) -> Description:
    kind = config["model_type"]
    if kind not in ("clip", "clip_text_model", "clip_vision_model"):
        return Description(where, obstacles=(f"model_type '{kind}', and only 'clip' is known",))
    own = config.get({"text": "text_config", "image": "vision_config"}[tower], config) if kind == "clip" else config
    act, eps = own.get("hidden_act", "quick_gelu"), own.get("layer_norm_eps", 1e-5)
    obstacles = [f"hidden_act '{act}'"] if act not in _ACTIVATIONS else []
    obstacles += [f"layer_norm_eps {eps}"] if eps != 1e-5 else []
    heads = own.get("num_attention_heads", _HF_HEADS[tower])
    return Description(where, {"heads": heads, "quick_gelu": _ACTIVATIONS.get(act)}, tuple(obstacles))


def _from_open_clip(config: dict[str, Any], tower: Tower, width: int, where: str) -> Description:
    model = config["model_cfg"]
    own = model[{"text": "text_cfg", "image": "vision_cfg"}[tower]]
    if own.get("timm_model_name"):
        return _of_timm(own["timm_model_name"], where)
    heads = own.get("heads", 8) if tower == "text" else width // own.get("head_width", 64)
    obstacles = [f"{key} {own[key]!r}" for key in _OPEN_CLIP_OTHERWISE if own.get(key)]
    if tower == "text" and own.get("pool_type", "argmax") != "argmax":
        obstacles.append(f"pool_type '{own['pool_type']}'")
    sizes = {"heads": heads, "quick_gelu": bool(model.get("quick_gelu", False))}
    return Description(where, sizes, tuple(obstacles))


def _from_timm(config: dict[str, Any], tower: Tower, width: int, where: str) -> Description:
    mean = config.get("pretrained_cfg", {}).get("mean")
    notes: tuple[str, ...] = ()
    if mean is not None and any(abs(a - b) > 1e-3 for a, b in zip(mean, _MEAN, strict=True)):
        notes = (f"it learned from images of mean {tuple(mean)}; here they have CLIP's mean and deviation",)
    return _of_timm(config["architecture"], where, notes, config.get("model_args", {}))


def _of_timm(
    name: str, where: str, notes: tuple[str, ...] = (), arguments: Mapping[str, Any] | None = None
) -> Description:
    """What timm itself builds under that name, without memory and from nowhere else than timm."""
    from inspect import signature

    import timm
    import torch
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    if not isinstance(name, str) or not timm.is_model(name):
        return Description(where, obstacles=(f"architecture {name!r}, which this timm does not know",))
    known_arguments = signature(VisionTransformer.__init__).parameters
    own = {key: value for key, value in (arguments or {}).items() if key in known_arguments}
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **own)
    if type(model) is not VisionTransformer:
        return Description(where, obstacles=(f"architecture '{name}', which is no plain ViT",))
    act = type(model.blocks[0].mlp.act)
    known = {nn.GELU: False, QuickGELU: True}
    eps = 1e-5 if isinstance(model.norm_pre, nn.LayerNorm) else 1e-6
    obstacles = [f"activation {act.__name__}"] if act not in known else []
    if getattr(model.blocks[0].norm1, "eps", None) != eps:
        obstacles.append(f"a LayerNorm of another epsilon than {eps}")
    sizes = {"heads": model.blocks[0].attn.num_heads, "quick_gelu": known.get(act)}
    return Description(where, sizes, tuple(obstacles), notes)


_Read = Callable[[dict[str, Any], Tower, int, str], Description]
_LIBRARIES: tuple[tuple[Callable[[dict[str, Any]], bool], _Read], ...] = (
    (lambda config: "model_cfg" in config, _from_open_clip),
    (lambda config: "architecture" in config, _from_timm),
    (lambda config: "model_type" in config, _from_transformers),
)
