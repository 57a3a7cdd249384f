"""tokenizer.json gives, in Hugging Face's library, the ids that the model was trained with."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.errors import UserError
from mres.model.text import Tokenizer
from mres.pretrained.tokenizer_file import TOKENIZER_NAME, check_tokenizer, tokenizer_json

tokenizers = pytest.importorskip("tokenizers")
OURS = Tokenizer(1024, 14)
THEIRS = tokenizers.Tokenizer.from_str(tokenizer_json(OURS))
# What HTML entities begin with apart: they are one of the two things that the file cannot undo.
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&"), max_size=40)


def check(ours: Tokenizer, theirs, text: str) -> None:
    ids, _ = ours([text])
    assert theirs.encode(text).ids == ids[0].tolist(), text


@given(PLAIN)
def test_plain_text_has_the_same_ids(text: str) -> None:
    check(OURS, THEIRS, text)


@pytest.mark.parametrize(
    "text",
    [
        "", "The LEFT  wheel\tof the red car's door", "it's!'s", "42nd x-ray #1 (top-left)", "a " * 40, "x" * 200,
        "naïve café", "a\u0301", "日本語 ボックス", "İstanbul", "“quoted” ‘single’", "<start_of_text> a <end_of_text>b",
    ],
)  # fmt: skip
def test_marks_accents_and_long_texts_have_the_same_ids(text: str) -> None:
    check(OURS, THEIRS, text)


def test_the_whole_vocabulary_is_clips() -> None:
    ours = Tokenizer(49408, 77)
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(ours))
    for text in ("a photo of the left wheel of a red car", "schadenfreude, 1/2 kg"):
        check(ours, theirs, text)
    assert theirs.get_vocab_size() == 49408


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content["model"]["merges"].reverse(), "another merges"),
        (lambda content: content["model"]["vocab"].update(a=5000), "another vocabulary"),
        (lambda content: content["truncation"].update(max_length=20), "another length"),
        (lambda content: content.pop("model"), "is not the tokenizer.json that mres writes"),
    ],
)
def test_a_tokenizer_of_other_ids_is_refused(tmp_path: Path, damage, said: str) -> None:
    content = json.loads(tokenizer_json(OURS))
    (tmp_path / TOKENIZER_NAME).write_text(json.dumps(content), encoding="utf-8")
    check_tokenizer(tmp_path, OURS)
    damage(content)
    (tmp_path / TOKENIZER_NAME).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        check_tokenizer(tmp_path, OURS)
