"""Multi-head attention, which the decoders of several models are made of.

Shapes: X sequences, N queries, M keys and values, C width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention through PyTorch's fused kernel, with positions added to queries and (optionally) keys."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, query_XNC: Tensor, key_XMC: Tensor, value_XMC: Tensor, allowed_XM: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.query(query_XNC), self.key(key_XMC), self.value(value_XMC)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if allowed_XM is None else allowed_XM[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))
