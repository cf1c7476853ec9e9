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
    size: tl.constexpr,
    chunk: tl.constexpr,
):
    """One window and head, `chunk` channels at a time: few registers, so that many windows are under way at once.

    Rotation mixes channel c of a head's first half with channel c of its second: both halves advance together.
    """
    head, window = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    start = tl.load(bounds + window).to(tl.int64)
    length = (tl.load(bounds + window + 1) - start).to(tl.int32)
    row = tl.arange(0, size)[:, None]
    half: tl.constexpr = head_dim // 2
    width: tl.constexpr = num_heads * head_dim
    dtype = qkv.dtype.element_ty
    first = qkv + start * 3 * width + head * head_dim + row * 3 * width
    angle = start * head_dim + row * head_dim

    scores = tl.zeros((size, size), tl.float32)
    for offset in tl.range(0, half, chunk):
        channel = offset + tl.arange(0, chunk)[None, :]
        inside = (row < length) & (channel < half)
        c, s = (
            tl.load(cos + angle + channel, mask=inside, other=0.0),
            tl.load(sin + angle + channel, mask=inside, other=0.0),
        )
        q1 = tl.load(first + channel, mask=inside, other=0.0).to(tl.float32)
        q2 = tl.load(first + half + channel, mask=inside, other=0.0).to(tl.float32)
        k1 = tl.load(first + width + channel, mask=inside, other=0.0).to(tl.float32)
        k2 = tl.load(first + width + half + channel, mask=inside, other=0.0).to(tl.float32)
        scores = tl.dot((q1 * c - q2 * s).to(dtype), tl.trans((k1 * c - k2 * s).to(dtype)), scores)
        scores = tl.dot((q2 * c + q1 * s).to(dtype), tl.trans((k2 * c + k1 * s).to(dtype)), scores)

    scores = tl.where(tl.arange(0, size)[None, :] < length, scores * scale, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(weights, axis=1)[:, None]
    weights = weights.to(dtype)
    place = out + start * width + head * head_dim + row * width
    for offset in tl.range(0, head_dim, chunk):
        channel = offset + tl.arange(0, chunk)[None, :]
        inside = (row < length) & (channel < head_dim)
        value = tl.load(first + 2 * width + channel, mask=inside, other=0.0)
        tl.store(place + channel, (tl.dot(weights, value) / total).to(dtype), mask=inside)
