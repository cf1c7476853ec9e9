"""The GPU kernel of `dfbench.models.windows`, in Triton."""

import triton
import triton.language as tl


@triton.jit
def attend_window(
    qkv,
    cos,
    sin,
    bounds,
    out,
    scale,
    num_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_half: tl.constexpr,
    size: tl.constexpr,
):
    """One window and head. A head's two halves, which rotation mixes, are matrices (size, padded_half) of their own."""
    head, window = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    start = tl.load(bounds + window).to(tl.int64)
    length = (tl.load(bounds + window + 1) - start).to(tl.int32)
    row, channel = tl.arange(0, size)[:, None], tl.arange(0, padded_half)[None, :]
    half: tl.constexpr = head_dim // 2
    inside = (row < length) & (channel < half)

    angle = start * head_dim + row * head_dim + channel
    c, s = tl.load(cos + angle, mask=inside, other=0.0), tl.load(sin + angle, mask=inside, other=0.0)
    width: tl.constexpr = num_heads * head_dim
    first = qkv + start * 3 * width + head * head_dim + row * 3 * width + channel
    dtype = qkv.dtype.element_ty
    q1 = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    q2 = tl.load(first + half, mask=inside, other=0.0).to(tl.float32)
    k1 = tl.load(first + width, mask=inside, other=0.0).to(tl.float32)
    k2 = tl.load(first + width + half, mask=inside, other=0.0).to(tl.float32)
    scores = tl.dot((q1 * c - q2 * s).to(dtype), tl.trans((k1 * c - k2 * s).to(dtype)))
    scores = tl.dot((q2 * c + q1 * s).to(dtype), tl.trans((k2 * c + k1 * s).to(dtype)), scores)

    scores = tl.where(tl.arange(0, size)[None, :] < length, scores * scale, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(weights, axis=1)[:, None]
    weights = weights.to(dtype)
    v1 = tl.load(first + 2 * width, mask=inside, other=0.0)
    v2 = tl.load(first + 2 * width + half, mask=inside, other=0.0)
    place = out + start * width + head * head_dim + row * width + channel
    tl.store(place, (tl.dot(weights, v1) / total).to(dtype), mask=inside)
    tl.store(place + half, (tl.dot(weights, v2) / total).to(dtype), mask=inside)
