"""GPU kernels in Triton: of `dfbench.models.packed.windows`, and of `dfbench.models.packed.fp8`."""

import triton
import triton.language as tl


@triton.jit
def attend_window(
    qkv,
    cos,
    sin,
    cu_seqlens,
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
    start = tl.load(cu_seqlens + window).to(tl.int64)
    length = (tl.load(cu_seqlens + window + 1) - start).to(tl.int32)
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


@triton.jit
def gate_and_quantize(
    gate_up,
    out,
    scales,
    largest_out,
    width: tl.constexpr,
    large: tl.constexpr,
    small: tl.constexpr,
):
    """One row, which stays in registers as two blocks of `large` + `small` >= width channels, both powers of two."""
    row = tl.program_id(0).to(tl.int64)
    first, second = tl.arange(0, large), large + tl.arange(0, small)
    a = _gated(gate_up + row * 2 * width, first, width)
    b = _gated(gate_up + row * 2 * width, second, width)
    largest = tl.maximum(tl.max(tl.abs(a)), tl.max(tl.abs(b)))
    scale = tl.where(largest > 0, largest / largest_out, 1.0)
    tl.store(scales + row, scale)
    dtype = out.dtype.element_ty
    tl.store(out + row * width + first, (a * (1 / scale)).to(dtype), mask=first < width)
    tl.store(out + row * width + second, (b * (1 / scale)).to(dtype), mask=second < width)


@triton.jit
def _gated(row, channel, width):
    """SwiGLU of some channels of a row: float32, rounded to the row's dtype where the modules' own code rounds."""
    dtype = row.dtype.element_ty
    gate = tl.load(row + channel, mask=channel < width, other=0.0).to(tl.float32)
    up = tl.load(row + width + channel, mask=channel < width, other=0.0).to(tl.float32)
    silu = (gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32)
    return (silu * up).to(dtype).to(tl.float32)
