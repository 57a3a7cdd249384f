"""The tokenizer loses nothing and counts what it cuts; the encoder knows words from padding."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_model import build

from mres.model.text import Tokenizer

SMALL = Tokenizer(1024, 77)
TEXTS = ["the left wheel of the blue car", "a person's hand", "Fahrrad – ü 漢字", "x", "42nd street, #7"]


def decoded(tokenizer: Tokenizer, text: str) -> str:
    """What the ids say, without start, end and padding."""
    ids_T = tokenizer([text])[0][0].tolist()
    end = ids_T.index(tokenizer._bpe.eot_token_id)
    return tokenizer._bpe.decode(ids_T[1:end]).strip()


@pytest.mark.parametrize("vocab_size", [1024, 4096, 49408])
@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_vocabulary_loses_nothing(vocab_size: int, text: str) -> None:
    tokenizer = Tokenizer(vocab_size, 77)
    full = Tokenizer(49408, 77)
    assert decoded(tokenizer, text) == decoded(full, text)
    assert decoded(tokenizer, text).replace(" ", "") == text.lower().replace(" ", "")
    assert int(tokenizer([text])[0].max()) == vocab_size - 1, (
        "the end of text has the highest id: the encoder relies on it"
    )


@given(st.text("abcdefghijklmnopqrstuvwxyz 0123456789", min_size=1, max_size=60))
def test_any_plain_text_comes_back(text: str) -> None:
    ids_XT, num_cut = SMALL([text])
    if not num_cut:
        assert decoded(SMALL, text).replace(" ", "") == text.replace(" ", "")
    assert ids_XT.shape == (1, 77)


@given(st.text(st.characters(max_codepoint=127) | st.sampled_from("&;<>'’éﬁ\u00a0\u200b"), max_size=30))
@example("tom &amp;amp; jerry's <start_of_text>  dog\tCat")
def test_word_by_word_is_the_whole_text_at_once(text: str) -> None:
    bpe = SMALL._bpe
    expected = [bpe.sot_token_id, *bpe.encode(text), bpe.eot_token_id]
    for _ in range(2):  # unknown, then remembered
        ids_T = SMALL([text])[0][0].tolist()
        assert ids_T[: len(expected)] == (expected if len(expected) <= 77 else [*expected[:76], bpe.eot_token_id])
        assert not any(ids_T[len(expected) :])


def test_what_is_too_long_keeps_its_start_and_its_end_token() -> None:
    short, long = "the red car", "the red car that stands behind the tree beside the house on the left of the street"
    whole_1T, _ = Tokenizer(1024, 77)([long])
    tokenizer = Tokenizer(1024, 8)
    ids_XT, num_cut = tokenizer([short, long, long])
    assert num_cut == 2
    assert ids_XT.dtype == torch.int32
    assert ids_XT.shape == (3, 8)
    assert ids_XT[1, :7].tolist() == whole_1T[0, :7].tolist()
    assert ids_XT[1, 7] == 1023
    assert int((ids_XT[0] == 1023).sum()) == 1
    assert tokenizer([])[0].shape == (0, 8)


def test_a_text_that_just_fits_is_not_cut() -> None:
    words = SMALL(["the red car"])[0][0]
    length = int((words != 0).sum())
    assert Tokenizer(1024, length)(["the red car"])[1] == 0
    assert Tokenizer(1024, length - 1)(["the red car"])[1] == 1


@torch.no_grad()
def test_words_end_at_the_end_of_text_and_the_sentence_is_its_state() -> None:
    torch.manual_seed(0)
    encoder = build().text.eval()
    text_BKT = Tokenizer(1024, 14)(["the red car", "x", "the left wheel of the blue car", "a"])[0].view(2, 2, 14)
    words_BKTE, sentence_BKE, is_word_BKT = encoder(text_BKT)
    assert words_BKTE.shape == (2, 2, 14, 32)
    lengths = is_word_BKT.sum(-1)
    assert (lengths == (text_BKT != 0).sum(-1)).all()
    for b in range(2):
        for k in range(2):
            assert torch.equal(sentence_BKE[b, k], words_BKTE[b, k, lengths[b, k] - 1])
