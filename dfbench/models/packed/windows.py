"""Attention inside the small windows of Qwen2.5-VL's vision tower, rotary embedding included, as one GPU kernel.

The general variable-length kernel works on blocks of 128 queries and has only 64 in a window. This one takes a window
at a time: it reads queries, keys and values once and writes the result, which is all that the memory has to move.
"""

import torch
from torch import Tensor

from dfbench.models.packed.packing import Segments

try:
    from dfbench.models.packed.triton_kernels import attend_window
except ImportError:  # builds of torch without CUDA come without Triton
    attend_window = None

LARGEST_WINDOW = 64
"""Tokens of a window at most: its scores stay in registers."""

_LOG2_E = 1.4426950408889634


def fits(qkv: Tensor, windows: Segments) -> bool:
    """Whether `attend_windows` can take these windows: on a GPU, half precision, windows not too large."""
    half_precision = qkv.dtype in (torch.bfloat16, torch.float16)
    return attend_window is not None and qkv.is_cuda and half_precision and windows.max_seqlen <= LARGEST_WINDOW


# An operator of its own: Triton launches it as it is, and the compiler leaves it alone.
@torch.library.custom_op("dfbench::attend_windows", mutates_args=())
def attend_windows(qkv: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Rotate queries and keys, then attend inside each window: qkv (N, 3, H, D) -> (N, H, D).

    cos, sin: float32 (N, D), whose second half repeats the first, as rotary embeddings' do. cu_seqlens: see `Segments`.
    Rows outside of all windows are left as they are in memory. The same as `rotate` and `attend` of
    `dfbench.models.packed.packing`, in the same precision.
    """
    out = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)
    num_heads, head_dim = out.shape[1:]
    # 16 channels are the least that a matrix instruction takes. Two warps and three stages: the fastest on an H200.
    attend_window[((len(cu_seqlens) - 1) * num_heads,)](
        qkv.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        cu_seqlens,
        out,
        _LOG2_E * head_dim**-0.5,
        num_heads=num_heads,
        head_dim=head_dim,
        size=LARGEST_WINDOW,
        chunk=16,
        num_warps=2,
        num_stages=3,
    )
    return out


@attend_windows.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)
