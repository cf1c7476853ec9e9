"""Optional 8-bit matrix products (`--precision fp8`): e4m3 weights and activations, scaled by row, summed in float32.

Each weight row (output channel) is scaled once to the largest e4m3 value, each activation row (token) at run time.
About twice the speed of bfloat16 on Hopper and later; answers move, by how much is what `scripts/benchmark_scoring.py`
reports.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
"""448, the largest finite e4m3 number."""

FIRST_CAPABILITY = (8, 9)
"""CUDA compute capability of the first GPUs with 8-bit products (Ada); Hopper is (9, 0)."""


class Fp8Linear(nn.Module):
    """A linear layer whose product is computed in e4m3: (..., in) -> (..., out) in the input's dtype.

    parts: output widths of the layers that were fused into it, if any (see `dfbench.models.fused`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, parts: list[int] | None = None) -> None:
        super().__init__()
        scale = row_scale(weight)
        self.register_buffer("weight", (weight.float() / scale).to(E4M3))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.clone())
        self.parts = parts

    def forward(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """rows: which output channels to give."""
        flat = hidden.flatten(0, -2)
        scale = row_scale(flat)
        product = torch._scaled_mm(
            (flat.float() * (1 / scale)).to(E4M3),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            out_dtype=hidden.dtype,
            use_fast_accum=False,  # summing in less than float32 would be a fifth faster and coarser
        )
        if self.bias is not None:
            product = product + self.bias
        return product.unflatten(0, hidden.shape[:-1])[..., rows]


def row_scale(matrix: Tensor) -> Tensor:
    """What each row of (n, k) is divided by to fill e4m3's range: float32 (n, 1), 1 for a row of zeros."""
    largest = matrix.abs().amax(dim=-1, keepdim=True).float()
    return torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))


def quantize(modules: Iterable[nn.Module]) -> None:
    """Replace, in place, every linear layer inside the modules whose sizes 8-bit products allow (multiples of 16)."""
    for module in modules:
        for name, child in list(module.named_children()):
            weight = getattr(child, "weight", None)
            is_linear = isinstance(weight, Tensor) and weight.dim() == 2 and hasattr(child, "bias")
            if is_linear and weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0:
                setattr(module, name, Fp8Linear(weight, child.bias, getattr(child, "parts", None)))
            else:
                quantize([child])
