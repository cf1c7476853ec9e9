"""Packed prefill: several prompts in one sequence, no padding between them, hidden states of each prompt's last token
only.

The modules and weights are transformers'; only the order of the calls is ours. Three exact savings:

- The tokens before the image (system text and the like) are the same in every prompt: their keys and values are
  computed once
  and put in front of each prompt's own.
- The last layer's queries, output projection and MLP are computed for each prompt's last token only: nothing reads the
  others.
- Of the output head two rows are used.

Shapes: N tokens of all prompts together, B prompts, P tokens of the shared prefix, C hidden size, H heads, Hkv
    key-value heads, D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from dfbench.models.packed.layers import gated, project_qkv

if TYPE_CHECKING:
    from dfbench.models.base import ModelInputs, Prompt


@dataclass(frozen=True)
class Segments:
    """Where the prompts (or images, or windows) of a packed sequence begin and end.

    cu_seqlens: int32 (B + 1,); segment i is [cu_seqlens[i], cu_seqlens[i + 1]). Empty segments are allowed at the end,
        and tokens after the last bound belong to none: both serve to keep shapes fixed.
    max_seqlen: no segment is longer. A kernel's launch size, so a round number serves as well.
    uniform: every segment has exactly `max_seqlen` tokens, and no token is left over. Never where `size` was given:
        which kernel runs must not depend on the batch.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    uniform: bool = False

    @classmethod
    def of(
        cls, lengths: Sequence[int] | Tensor, *, size: int | None = None, max_seqlen: int | None = None
    ) -> "Segments":
        """Segments of these lengths, on the CPU; with empty ones after them where `size` asks for more."""
        lengths = torch.as_tensor(lengths, dtype=torch.int32)
        max_seqlen = int(lengths.max()) if max_seqlen is None else max_seqlen
        cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        uniform = size is None and bool((lengths == max_seqlen).all())
        if size is not None:
            cu_seqlens = torch.cat([cu_seqlens, cu_seqlens[-1:].expand(size + 1 - len(cu_seqlens))])
        return cls(cu_seqlens, max_seqlen, uniform)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Segments":
        return replace(self, cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Segments":
        return replace(self, cu_seqlens=self.cu_seqlens.pin_memory())


def attend(query: Tensor, key: Tensor, value: Tensor, queries: Segments, keys: Segments, *, causal: bool) -> Tensor:
    """Attention inside each segment: query (Nq, H, D), key and value (Nk, Hkv, D) -> (Nq, H, D), H a multiple of Hkv.

    Causal: the last query of a segment sees all of its keys, the one before it all but the last, and so on.

    Segments of one length go through as a batch, which is up to twice as fast on a Hopper GPU (cuDNN's kernel); others
    through the variable-length kernel, or one by one where there is none (float32, and every CPU).
    """
    if queries.uniform and keys.uniform:
        lengths = queries.max_seqlen, keys.max_seqlen, keys.max_seqlen
        parts = (part.unflatten(0, (-1, length)) for part, length in zip((query, key, value), lengths, strict=True))
        return _attend_batch(*parts, causal=causal).flatten(0, 1)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        window = (-1, 0) if causal else (-1, -1)
        max_seqlen = queries.max_seqlen, keys.max_seqlen
        return varlen_attn(query, key, value, queries.cu_seqlens, keys.cu_seqlens, *max_seqlen, window_size=window)
    return _attend_one_by_one(query, key, value, queries, keys, causal=causal)


def _attend_one_by_one(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments, *, causal: bool) -> Tensor:
    q_lengths, k_lengths = queries.cu_seqlens.diff().tolist(), keys.cu_seqlens.diff().tolist()
    parts = ((q, q_lengths), (k, k_lengths), (v, k_lengths))
    split = (part[: sum(lengths)].split(lengths) for part, lengths in parts)
    outputs = [_attend_batch(*(part[None] for part in one), causal=causal)[0] for one in zip(*split, strict=True)]
    return pad(torch.cat(outputs), len(q))


def _attend_batch(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """The same for B segments of one length: query (B, Lq, H, D), key and value (B, Lk, Hkv, D) -> (B, Lq, H, D)."""
    if query.shape[1] == 1:
        return _attend_from_one(query, key, value)
    missing = key.shape[1] - query.shape[1]
    if causal and missing:
        # The kernels align the causal triangle with the first query: put queries in front that nobody looks at.
        query = F.pad(query, (0, 0, 0, 0, missing, 0))
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    attended = attended.transpose(1, 2)
    return attended[:, missing:] if causal else attended


def _attend_from_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same for a single query, which sees every key: (B, 1, H, D), in float32.

    The fused GPU kernels would share out the keys of so short a query and add the shares in an order that changes from
    call to call: an image's logits would vary in their last bit.
    """
    grouped = query[:, 0].unflatten(1, (key.shape[2], -1)).float()
    weights = torch.einsum("bhgd,blhd->bhgl", grouped * query.shape[-1] ** -0.5, key.float()).softmax(dim=-1)
    return torch.einsum("bhgl,blhd->bhgd", weights, value.float()).flatten(1, 2)[:, None].to(query.dtype)


def rotate(tensor: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in float32, half-split layout: tensor (N, H, D), cos and sin float32 (N, D)."""
    first, second = tensor.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (tensor.float() * cos[:, None] + turned * sin[:, None]).to(tensor.dtype)


Prefix = list[tuple[Tensor, Tensor]]
"""Keys (after rotation) and values of the tokens that all prompts begin with: one pair (P, Hkv, D) a layer."""


@dataclass(frozen=True)
class Layout:
    """How the prompts of a batch lie in its sequence; what `decode_last` needs to know besides the hidden states.

    queries: the prompts without the shared prefix. keys: with it.
    key_rows: int64 (keys,), for each key its row in [prefix; the batch's own tokens].
    last: int64 (B,), row of each prompt's last token. ends: one query for each prompt.
    """

    queries: Segments
    keys: Segments
    key_rows: Tensor
    last: Tensor
    ends: Segments

    @classmethod
    def of(cls, lengths: Tensor, prefix: int, shape: "PackShape | None" = None) -> "Layout":
        """Layout of prompts of these lengths (prefix left out), on the CPU, padded to `shape` where there is one."""
        size, tokens, max_seqlen = None, int(lengths.sum()), int(lengths.max())
        if shape:
            size, tokens, max_seqlen = shape.prompts, shape.tokens, shape.max_seqlen
        if shape and shape.uniform:
            lengths, size = torch.full((shape.prompts,), shape.max_seqlen), None  # padded with whole prompts
        queries = Segments.of(lengths, size=size, max_seqlen=max_seqlen)
        keys = Segments.of(lengths + prefix, size=size, max_seqlen=max_seqlen + prefix)
        # Key j of prompt i is row j of the prefix, or else row j - prefix of the prompt's own, which start at its
        # bound.
        prompt = torch.arange(len(lengths)).repeat_interleave(lengths + prefix)
        place = torch.arange(len(prompt)) - keys.cu_seqlens[prompt]
        rows = torch.zeros(tokens + (size or len(lengths)) * prefix, dtype=torch.int64)
        rows[: len(prompt)] = torch.where(place < prefix, place, queries.cu_seqlens[prompt] + place)
        last = (queries.cu_seqlens[1:].long() - 1).clamp(min=0)
        return cls(queries, keys, rows, last, Segments.of(torch.ones(len(lengths)), size=size, max_seqlen=1))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Layout":
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Layout":
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable) -> "Layout":
        return Layout(*(change(getattr(self, part.name)) for part in fields(self)))


@dataclass(frozen=True)
class PackShape:
    """The fixed shape of every batch of a run, so that compiled code serves them all; smaller batches are padded.

    tokens, prompts: of the language model, shared prefix left out. max_seqlen: tokens of the longest prompt.
    vision: tiles (InternVL) or patches (Qwen2.5-VL). max_vision: those of the largest image.
    windows: attention windows of the vision tower.
    uniform: all prompts of the run are equally long, images as well, so that batches are padded with whole ones.
    """

    tokens: int
    prompts: int
    max_seqlen: int
    vision: int
    max_vision: int
    windows: int = 0
    uniform: bool = False


def pad(tensor: Tensor, size: int | None, dim: int = 0) -> Tensor:
    """The tensor with zeros after it along `dim`, up to `size` (None: as it is)."""
    if size is None or tensor.shape[dim] == size:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def pack_prompts(prompt: "Prompt", inputs: "list[ModelInputs]", shape: PackShape | None) -> dict[str, Any]:
    """What every family's packed batch holds, on the CPU: input_ids and positions int64 (N,), image_slots int64 (image
    tokens,), the rows of the image tokens, pixels uint8 (tiles or patches, ...), layout, and count (B,).
    """
    start = len(prompt.prefix)
    for item in inputs:
        assert item.input_ids[:start].tolist() == prompt.prefix, "share_prefix has not seen this question"
    own = [item.input_ids[start:] for item in inputs]
    input_ids, lengths = torch.cat(own), torch.tensor([len(ids) for ids in own])
    tokens, vision = (shape.tokens, shape.vision) if shape else (None, None)
    return {
        "input_ids": pad(input_ids, tokens),
        "positions": pad(torch.cat([torch.arange(start, start + len(ids)) for ids in own]), tokens),
        "layout": Layout.of(lengths, start, shape),
        "image_slots": (input_ids == prompt.image_token_id).nonzero().flatten(),
        "pixels": pad(torch.cat([item.pixels for item in inputs]), vision),
        "count": lengths,
    }


def decode_prefix(layers: Sequence[nn.Module], hidden: Tensor, cos: Tensor, sin: Tensor) -> Prefix:
    """Keys and values of one sequence of P tokens in every layer: hidden (P, C), cos and sin (P, D)."""
    whole = Segments.of([len(hidden)]).to(hidden.device)
    pairs = []
    for layer in layers:
        query, key, value = project_qkv(layer.self_attn, layer.input_layernorm(hidden))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        pairs.append((key, value))
        hidden = _after_attention(layer, hidden, attend(query, key, value, whole, whole, causal=True))
    return pairs


def decode_last(
    layers: Sequence[nn.Module], hidden: Tensor, cos: Tensor, sin: Tensor, layout: Layout, prefix: Prefix, run: Callable
) -> Tensor:
    """A llama-like decoder (Llama, Qwen2, Qwen2.5-VL) over packed prompts: hidden (N, C) -> (B, C), before the final
    norm.

    run: `decoder_layer`, or a compiled form of it. The last layer, whose work is small, does without: compiled, in
    torch's deterministic mode too, its last bit changed from process to process (torch 2.11, H200).
    """
    for layer, pair in zip(layers[:-1], prefix[:-1], strict=True):
        hidden = run(layer, hidden, pair, cos, sin, layout.queries, layout.keys, layout.key_rows, None)
    asking = layout.ends, layout.keys, layout.key_rows, layout.last
    return decoder_layer(layers[-1], hidden, prefix[-1], cos, sin, *asking)


def decoder_layer(
    layer: nn.Module,
    hidden: Tensor,
    prefix: tuple[Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    queries: Segments,
    keys: Segments,
    key_rows: Tensor,
    asking: Tensor | None,
) -> Tensor:
    """One decoder layer: hidden (N, C) -> (N, C). A function of tensors, so that one compiled form serves all layers.

    prefix, key_rows: see `Prefix` and `Layout`. asking: int64 (B,), the rows whose output is wanted -> (B, C); None for
        all.
    """
    query, key, value = project_qkv(layer.self_attn, layer.input_layernorm(hidden), asking)
    key = torch.cat([prefix[0], rotate(key, cos, sin)])[key_rows]
    value = torch.cat([prefix[1], value])[key_rows]
    if asking is not None:
        hidden, cos, sin = hidden[asking], cos[asking], sin[asking]
    return _after_attention(layer, hidden, attend(rotate(query, cos, sin), key, value, queries, keys, causal=True))


def _after_attention(layer: nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    hidden = hidden[: len(attended)] + layer.self_attn.o_proj(attended.flatten(1))
    return hidden + gated(layer.mlp, layer.post_attention_layernorm(hidden))


def answer_logits(head: nn.Linear, hidden: Tensor, answer_tokens: tuple[int, int]) -> Tensor:
    """Logits of the two answers alone, two rows of the head: hidden (B, C) -> float32 (B, 2)."""
    rows = torch.stack([head.weight[token] for token in answer_tokens])  # an index from the CPU would wait for the GPU
    return F.linear(hidden, rows).float()
