"""Attention inside the small windows of Qwen2.5-VL's vision tower, rotary embedding included, as one GPU kernel.

The general variable-length kernel works on blocks of 128 queries and has only 64 in a window. This one holds a window
in registers: it reads queries, keys and values once and writes the result, which is all that the memory has to move.
"""

import torch
from torch import Tensor

from dfbench.models.packed import Segments

try:
    from dfbench.models.window_kernel import attend_window
except ImportError:  # builds of torch without CUDA come without Triton
    attend_window = None

LARGEST_WINDOW = 64
"""Tokens of a window at most, and twice its rotated pairs a head: what fits into registers."""

_LOG2_E = 1.4426950408889634


def fits(qkv: Tensor, windows: Segments) -> bool:
    """Whether `attend_windows` can take these windows: on a GPU, half precision, windows and heads not too large."""
    half_precision = qkv.dtype in (torch.bfloat16, torch.float16)
    small = windows.longest <= LARGEST_WINDOW and qkv.shape[-1] <= 2 * LARGEST_WINDOW
    return attend_window is not None and qkv.is_cuda and half_precision and small


def attend_windows(qkv: Tensor, cos: Tensor, sin: Tensor, windows: Segments) -> Tensor:
    """Rotate queries and keys, then attend inside each window: qkv (N, 3, H, D) -> (N, H, D).

    cos, sin: float32 (N, D), whose second half repeats the first, as rotary embeddings' do. Rows outside of all windows
    are left as they are in memory. The same as `rotate` and `attend` of `dfbench.models.packed`, in the same precision.
    """
    out = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)
    num_heads, head_dim = out.shape[1:]
    grid = ((len(windows.bounds) - 1) * num_heads,)
    attend_window[grid](
        qkv.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        windows.bounds,
        out,
        _LOG2_E * head_dim**-0.5,
        num_heads=num_heads,
        head_dim=head_dim,
        padded_half=max(16, 1 << (head_dim // 2 - 1).bit_length()),
        size=LARGEST_WINDOW,
        num_warps=4,
    )
    return out
