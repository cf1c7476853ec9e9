"""Packed prefill: several prompts in one sequence, no padding, hidden states of each prompt's last token only.

The modules and weights are transformers'; only the order of the calls is ours. Shapes: N tokens of all prompts
together, B prompts, C hidden size, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Segments:
    """Where the prompts (or vision windows) of a packed sequence begin and end.

    bounds: int32 (B + 1,), on the tokens' device; segment i is [bounds[i], bounds[i + 1]).
    lengths: the same as Python numbers, for the loop over segments and the kernel's launch size.
    """

    bounds: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        lengths = tuple(int(length) for length in lengths)
        bounds = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
        return cls(bounds.to(device, non_blocking=True), lengths)

    @property
    def last(self) -> Tensor:
        """Index of each segment's last token: int64 (B,)."""
        return self.bounds[1:].long() - 1


def attend(query: Tensor, key: Tensor, value: Tensor, queries: Segments, keys: Segments, *, causal: bool) -> Tensor:
    """Attention inside each segment: query (Nq, H, D), key and value (Nk, Hkv, D) -> (Nq, H, D), H a multiple of Hkv.

    Segments of one query see their whole key segment, which is what causal attention gives the last token.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        window = (-1, 0) if causal else (-1, -1)
        most = max(queries.lengths), max(keys.lengths)
        return varlen_attn(query, key, value, queries.bounds, keys.bounds, *most, window_size=window)
    parts = zip(
        query.split(queries.lengths), key.split(keys.lengths), value.split(keys.lengths), strict=True
    )  # the float32 and CPU way
    return torch.cat([_attend_one(q, k, v, causal=causal and len(q) > 1) for q, k, v in parts])


def _attend_one(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])[0].transpose(
        0, 1
    )


def rotate(tensor: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout: tensor (N, H, D), cos and sin (N, D)."""
    first, second = tensor.chunk(2, dim=-1)
    return tensor * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def decode_last(layers: Sequence[nn.Module], hidden: Tensor, cos: Tensor, sin: Tensor, prompts: Segments) -> Tensor:
    """Run a llama-like decoder (Llama, Qwen2, Qwen2.5-VL) over packed prompts: hidden (N, C) -> (B, C), before the
    final norm.

    The last layer's queries, output projection and MLP are computed for the last token of each prompt only: nothing
    reads the others.
    """
    for layer in layers[:-1]:
        hidden = _decoder_layer(layer, hidden, hidden, cos, sin, prompts, prompts)
    last = prompts.last
    ends = Segments(torch.arange(len(last) + 1, dtype=torch.int32, device=hidden.device), (1,) * len(last))
    return _decoder_layer(layers[-1], hidden[last], hidden, cos, sin, ends, prompts, rows=last)


def _decoder_layer(
    layer: nn.Module,
    asking: Tensor,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    queries: Segments,
    keys: Segments,
    rows: Tensor | None = None,
) -> Tensor:
    """One decoder layer: tokens `asking` (Nq, C) attend to all tokens `hidden` (N, C); `rows` are theirs in `hidden`."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    normed_asking, cos_q, sin_q = (normed, cos, sin) if rows is None else (normed[rows], cos[rows], sin[rows])
    shape = (-1, attention.head_dim)
    query = rotate(attention.q_proj(normed_asking).unflatten(-1, shape), cos_q, sin_q)
    key = rotate(attention.k_proj(normed).unflatten(-1, shape), cos, sin)
    value = attention.v_proj(normed).unflatten(-1, shape)
    asking = asking + attention.o_proj(attend(query, key, value, queries, keys, causal=True).flatten(1))
    return asking + layer.mlp(layer.post_attention_layernorm(asking))


def two_letter_logits(head: nn.Linear, hidden: Tensor, letters: tuple[int, int]) -> Tensor:
    """Logits of the two letters alone, two rows of the head: hidden (B, C) -> float32 (B, 2)."""
    rows = head.weight[list(letters)]
    return F.linear(hidden, rows).float()
