"""The tokenizer as a file: tokenizer.json, which Hugging Face's `tokenizers` loads and every runtime of theirs reads.

It gives the same ids as `mres.model.text.Tokenizer`, start, end, cut and padding included, for every text that needs no
repair: what open_clip does to broken Unicode (ftfy) and HTML entities is code, which no such file can hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.io.json_files import JsonError, read_json
from mres.model.spec import Tokenize
from mres.model.text import END, START, Tokenizer

TOKENIZER_NAME = "tokenizer.json"
# CLIP's, the tokens of start and end of text apart (open_clip/tokenizer.py).
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The file's content."""
    vocabulary = tokenizer.vocabulary
    length = tokenizer.length
    (pad,) = (token for token, id_ in vocabulary.items() if id_ == 0)
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": pad,
        },
        "added_tokens": [_special(token, vocabulary[token]) for token in (START, END)],
        "normalizer": _sequence(
            "normalizers",
            {"type": "NFC"},
            # The one repair that ordinary text needs, written as ftfy does it.
            {"type": "Replace", "pattern": {"Regex": "[\u02bc\u2018-\u201b]"}, "content": "'"},
            {"type": "Replace", "pattern": {"Regex": "[\u201c-\u201f]"}, "content": '"'},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ),
        "pre_tokenizer": _sequence(
            "pretokenizers",
            {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ),
        "post_processor": _between(START, END, vocabulary),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": tokenizer.merges,
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _special(token: str, id_: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id_, "content": token, **flags}


def _sequence(of: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", of: list(steps)}


def _between(start: str, end: str, vocabulary: dict[str, int]) -> dict[str, Any]:
    def marked(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [marked(start), text("A"), marked(end)],
        "pair": [marked(start), text("A"), text("B"), marked(end)],
        "special_tokens": {t: {"id": t, "ids": [vocabulary[t]], "tokens": [t]} for t in (start, end)},
    }


def check_tokenizer(folder: Path, tokenizer: Tokenize) -> None:
    """Refuses weights that were trained with other token ids than `tokenizer` gives; without the file, nothing.

    Raises:
        UserError: the file is damaged, or of another vocabulary, merges or length.
    """
    path = folder / TOKENIZER_NAME
    if not path.is_file() or not isinstance(tokenizer, Tokenizer):
        return
    mine = json.loads(tokenizer_json(tokenizer))
    try:
        theirs = read_json(path)
        differ = [
            name
            for name, found, expected in (
                ("vocabulary", theirs["model"]["vocab"], mine["model"]["vocab"]),
                ("merges", theirs["model"]["merges"], mine["model"]["merges"]),
                ("length", theirs["truncation"]["max_length"], tokenizer.length),
            )
            if found != expected
        ]
    except (JsonError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is not the tokenizer.json that mres writes ({error!r}); export again") from None
    if differ:
        raise UserError(
            f"'{path}' has another {' and '.join(differ)} than the tokenizer of this installation (open_clip_torch), so "
            "texts would become other ids than in training; install the versions that the model card names"
        )
