"""The text encoder and its tokenizer, both open_clip's.

Shapes: B images, K expressions an image, T tokens an expression, E text width.
"""

import gzip
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mres.model.initial import Fill, constant, normal

_FIXED_TOKENS = 256 * 2 + 2  # bytes, bytes that end a word, start and end of text
_MAX_WORDS = 100_000  # remembered
START, END = "<start_of_text>", "<end_of_text>"


class TextEncoder(nn.Module):
    """CLIP's text transformer: every word's state and the sentence's (the state at the end-of-text token).

    Args:
        joint_width: of CLIP's joint space of texts and images, into which the sentence's state goes then.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        vocab_size: int,
        length: int,
        quick_gelu: bool,
        joint_width: int | None = None,
    ) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        self.tower = TextTransformer(
            context_length=length,
            vocab_size=vocab_size,
            width=width,
            heads=heads,
            layers=depth,
            output_dim=joint_width,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
            output_tokens=True,
        )

    def initialisers(self) -> dict[str, Fill]:
        """open_clip's (TextTransformer.init_parameters) and, of biases, torch's."""
        width, depth = self.tower.width, len(self.tower.transformer.resblocks)
        residual = normal((2 * width * depth) ** -0.5)
        block = {
            "attn.in_proj_weight": normal(width**-0.5),
            "attn.in_proj_bias": constant(0.0),
            "attn.out_proj.weight": residual,
            "attn.out_proj.bias": constant(0.0),
            "mlp.c_fc.weight": normal((2 * width) ** -0.5),
            "mlp.c_proj.weight": residual,
        }
        joint = {} if self.tower.text_projection is None else {"tower.text_projection": normal(width**-0.5)}
        return joint | {
            "tower.token_embedding.weight": normal(0.02),
            "tower.positional_embedding": normal(0.01),
            **{f"tower.transformer.resblocks.{i}.{name}": fill for i in range(depth) for name, fill in block.items()},
        }

    def forward(self, text_BKT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids to (words_BKTE, sentence_BKE, is_word_BKT); padding behind the end-of-text token is not a word."""
        B, K, T = text_BKT.shape
        text_XT = text_BKT.reshape(B * K, T)
        sentence_XE, words_XTE = self.tower(text_XT)
        end_X = text_XT.argmax(dim=-1)  # the end-of-text token has the highest id
        is_word_XT = torch.arange(T, device=text_XT.device) <= end_X[:, None]
        return words_XTE.view(B, K, T, -1), sentence_XE.view(B, K, -1), is_word_XT.view(B, K, T)


class Tokenizer:
    """Texts to token ids of one length. An expression that is too long keeps its start and its end-of-text token."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self.length = length
        self._bpe = _bpe(vocab_size)
        self._words: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Returns int32 ids of shape (len(texts), length), zero-padded, and how many texts had to be cut."""
        ids_XT = np.zeros((len(texts), self.length), np.int32)
        num_cut = 0
        for row, text in enumerate(texts):
            ids = [self._bpe.sot_token_id, *self._encode(text), self._bpe.eot_token_id]
            if len(ids) > self.length:
                num_cut += 1
                ids = [*ids[: self.length - 1], self._bpe.eot_token_id]
            ids_XT[row, : len(ids)] = ids
        return torch.from_numpy(ids_XT), num_cut

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, in the order of the ids."""
        return dict(self._bpe.encoder)

    @property
    def merges(self) -> list[list[str]]:
        """The pairs that become one token, those that go first first."""
        return [list(pair) for pair in self._bpe.bpe_ranks]

    def texts(self, ids_XT: Tensor) -> list[str]:
        """What the ids say between start and end; nothing, for ids that are padding only."""
        end = self._bpe.eot_token_id
        rows = (row[1 : row.index(end)] if end in row else [] for row in ids_XT.tolist())
        return [str(self._bpe.decode(row)).strip() for row in rows]

    def _encode(self, text: str) -> list[int]:
        """The ids of `text`. Texts are many but words are few, and in plain text each stands for itself.

        Plain is what open_clip's cleaning would not touch: no broken Unicode, control characters or HTML entities.
        """
        if not text.isascii() or not text.isprintable() or "&" in text:
            return list(self._bpe.encode(text))
        return [id_ for word in text.lower().split() for id_ in self._words.get(word) or self._word(word)]

    def _word(self, word: str) -> list[int]:
        ids = list(self._bpe.encode(word))
        if len(self._words) < _MAX_WORDS:
            self._words[word] = ids
        return ids


@lru_cache(maxsize=4)
def _bpe(vocab_size: int) -> Any:
    """CLIP's tokenizer with only its most frequent merges: rarer words become several tokens, none is lost."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if vocab_size == 49408:
        return SimpleTokenizer()
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as merges:
        lines = merges.read().split("\n")
    with tempfile.NamedTemporaryFile(suffix=".gz") as cut:
        cut.write(gzip.compress("\n".join(lines[: 1 + vocab_size - _FIXED_TOKENS]).encode()))
        cut.flush()
        tokenizer = SimpleTokenizer(bpe_path=cut.name)
    assert tokenizer.vocab_size == vocab_size, (tokenizer.vocab_size, vocab_size)
    return tokenizer
