"""CLIP's tensors under OpenAI's names, whoever wrote them: OpenAI, open_clip (two layouts) or Hugging Face."""

from __future__ import annotations

import re
from typing import Literal

import torch

from mres.pretrained.parts import Part, Parts

Naming = Literal["OpenAI CLIP", "open_clip CLIP", "open_clip CustomTextCLIP", "Hugging Face CLIP"]
# How OpenAI's released files can be told: their sizes are tensors too.
_OPENAI = {"input_resolution", "context_length", "vocab_size"}
_BUFFERS = ("attn_mask", "position_ids")  # computed from the sizes
_HUGGING_FACE = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # their spelling
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.[qkv]_proj\.(weight|bias)$", r".attn.in_proj_\1"),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


# One of these is in every tower, whatever stands before its name.
ANCHORS = frozenset(
    {
        "token_embedding.weight", "text.token_embedding.weight", "text_model.embeddings.token_embedding.weight",
        "patch_embed.proj.weight", "visual.trunk.patch_embed.proj.weight", "visual.conv1.weight",
        "vision_model.embeddings.patch_embedding.weight",
    }
)  # fmt: skip


def clip_parts(parts: Parts) -> tuple[Naming | None, Parts]:
    """What CLIP the tensors are of (None: of none), and each under OpenAI's name; buffers are left out."""
    parts = {name: part for name, part in parts.items() if not name.endswith(_BUFFERS)}
    if any(name.startswith(("text_model.embeddings.", "vision_model.embeddings.")) for name in parts):
        return "Hugging Face CLIP", _from_hugging_face(parts)
    if {"text.token_embedding.weight", "text.positional_embedding"} <= set(parts):
        return "open_clip CustomTextCLIP", {name.removeprefix("text."): part for name, part in parts.items()}
    if {"token_embedding.weight", "positional_embedding"} <= set(parts) or "visual.conv1.weight" in parts:
        return "OpenAI CLIP" if set(parts) >= _OPENAI else "open_clip CLIP", parts
    return None, parts


def _from_hugging_face(parts: Parts) -> Parts:
    """Their query, key and value are three tensors; CLIP's are one, in this order."""
    renamed: Parts = {}
    for name in sorted(parts, key=_query_key_value):
        plain = name
        for pattern, replacement in _HUGGING_FACE:
            plain = re.sub(pattern, replacement, plain)
        renamed[plain] = _joined(renamed[plain], parts[name]) if plain in renamed else parts[name]
    return renamed


def _query_key_value(name: str) -> int:
    found = re.search(r"\.([qkv])_proj\.", name)
    return "qkv".index(found[1]) if found else 0


def _joined(first: Part, second: Part) -> Part:
    rows = first.shape[0] + second.shape[0] if first.shape and second.shape else 0
    return Part(first.names + second.names, torch.Size((rows, *first.shape[1:])))
