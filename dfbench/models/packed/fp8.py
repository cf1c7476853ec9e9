"""Optional 8-bit matrix products (`--precision fp8`): e4m3 weights and activations, scaled by row, summed in float32.

Each weight row (output channel) is scaled once to the largest e4m3 value, each activation row (token) at run time.
About twice the speed of bfloat16 on Hopper and later; answers move, by how much is what `scripts/benchmark_scoring.py`
reports.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

try:
    from dfbench.models.packed.triton_kernels import gate_and_quantize
except ImportError:  # builds of torch without CUDA come without Triton
    gate_and_quantize = None

E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max
"""448, the largest finite e4m3 number."""

FIRST_CAPABILITY = (8, 9)
"""CUDA compute capability of the first GPUs with 8-bit products (Ada); Hopper is (9, 0)."""


class Fp8Linear(nn.Module):
    """A linear layer whose product is computed in e4m3: (..., in) -> (..., out) in the input's dtype.

    parts: output widths of the layers that were fused into it, if any (see `dfbench.models.packed.layers`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, parts: list[int] | None = None) -> None:
        super().__init__()
        scale = row_scale(weight)
        self.register_buffer("weight", (weight.float() / scale).to(E4M3))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.clone())
        self.parts = parts

    def forward(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """rows: which output channels to compute."""
        flat = hidden.flatten(0, -2)
        scale = row_scale(flat)
        product = self.multiply((flat.float() * (1 / scale)).to(E4M3), scale, hidden.dtype, rows)
        return product.unflatten(0, hidden.shape[:-1])

    def multiply(self, hidden: Tensor, scale: Tensor, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """The same of rows that are scaled already: hidden e4m3 (n, in), scale float32 (n, 1) -> dtype (n, out)."""
        product = torch._scaled_mm(
            hidden,
            self.weight[rows].t(),
            scale_a=scale,
            scale_b=self.scale[rows].t(),
            out_dtype=dtype,
            use_fast_accum=False,  # summing in less than float32 would be a fifth faster and coarser
        )
        return product if self.bias is None else product + self.bias[rows]


def row_scale(matrix: Tensor) -> Tensor:
    """What each row of (n, k) is divided by to fill e4m3's range: float32 (n, 1), 1 for a row of zeros."""
    largest = matrix.abs().amax(dim=-1, keepdim=True).float()
    return torch.where(largest > 0, largest / E4M3_MAX, torch.ones_like(largest))


@torch.library.custom_op("dfbench::swiglu", mutates_args=())
def swiglu(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up, scaled by row: half precision (n, 2 * width) -> e4m3 (n, width), float32 (n, 1).

    One kernel that reads each row once; compiled code would read it twice, for the scale and for the product.
    """
    out, scales = _swiglu_outputs(gate_up)
    width = out.shape[1]
    large = 1 << (width.bit_length() - 1)
    small = 1 << (width - large - 1).bit_length()
    warps = min(16, max(1, (large + small) // 1024))  # some 40 channels a thread
    gate_and_quantize[(len(out),)](
        gate_up.contiguous(),
        out,
        scales,
        E4M3_MAX,
        width=width,
        large=large,
        small=small,
        num_warps=1 << (warps.bit_length() - 1),
    )
    return out, scales


@swiglu.register_fake
def _swiglu_outputs(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    return gate_up.new_empty(rows, width, dtype=E4M3), gate_up.new_empty(rows, 1, dtype=torch.float32)


def takes_swiglu(mlp: nn.Module) -> bool:
    """Whether `swiglu` can stand for the activation of a gated MLP."""
    is_silu = isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
    return gate_and_quantize is not None and is_silu and isinstance(mlp.down_proj, Fp8Linear)


def quantize(modules: Iterable[nn.Module]) -> None:
    """Replace, in place, every linear layer inside the modules whose sizes 8-bit products allow (multiples of 16)."""
    for module in modules:
        for name, child in list(module.named_children()):
            weight = getattr(child, "weight", None)
            is_linear = isinstance(weight, Tensor) and weight.dim() == 2 and hasattr(child, "bias")
            parts = getattr(child, "parts", None)
            if is_linear and all(size % 16 == 0 for size in (*weight.shape, *(parts or ()))):
                setattr(module, name, Fp8Linear(weight, child.bias, parts))
            else:
                quantize([child])
