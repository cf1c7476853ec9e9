"""The 8-bit kernel against the same written out, in Triton's interpreter (CPU); the products themselves need a GPU."""

import pytest
import torch
from builders import interpret
from torch import nn

from dfbench.models.packed.fp8 import E4M3_MAX, Fp8Linear, quantize, row_scale
from dfbench.models.packed.layers import FusedLinear

COMPARE = """
import torch
from dfbench.models.packed.fp8 import row_scale, swiglu

torch.manual_seed(0)
for width in (48, 3424):
    gate_up = (torch.randn(5, 2 * width) * 3).half()  # the interpreter cuts bfloat16 off instead of rounding it
    gate_up[3] = 0
    found, scale = swiglu(gate_up)
    gate, up = gate_up.split(width, dim=-1)
    product = (torch.nn.functional.silu(gate) * up).float()
    torch.testing.assert_close(scale, row_scale(product), rtol=1e-3, atol=0)
    # Three bits after the first, and steps of 2 ** -9 at the lower end.
    allowed = product.abs() / 2**4 + scale * 2**-9
    far = ((found.float() * scale - product).abs() > 1.01 * allowed).float().mean()
    print(far.item(), scale[3].item(), found[3].float().abs().max().item())
"""


@pytest.mark.slow
def test_the_kernel_equals_activation_and_scaling() -> None:
    pytest.importorskip("triton")
    numbers = interpret(COMPARE)
    for far, empty_scale, largest_of_empty in (numbers[:3], numbers[3:]):
        assert far < 0.05, "the interpreter loses a carry when it rounds up to a power of two, a GPU does not"
        assert (empty_scale, largest_of_empty) == (1, 0)


def test_rows_are_scaled_to_the_largest_number() -> None:
    matrix = torch.tensor([[1.0, -4.0], [0.0, 0.0], [448.0, 3.0]])
    torch.testing.assert_close(row_scale(matrix).flatten(), torch.tensor([4 / E4M3_MAX, 1, 1]))


def test_layers_whose_sizes_allow_it_become_8_bit() -> None:
    block = nn.Module()
    block.fits, block.narrow, block.norm = nn.Linear(32, 48), nn.Linear(32, 7), nn.LayerNorm(32)
    block.fused = FusedLinear([nn.Linear(32, 40), nn.Linear(32, 8)])  # 48 together, but neither alone
    exact = block.fits.weight.clone()
    quantize([block])
    assert isinstance(block.fits, Fp8Linear)
    assert type(block.narrow) is nn.Linear
    assert type(block.fused) is FusedLinear
    stored = block.fits.weight.float() * block.fits.scale
    assert (stored - exact).abs().max() <= 2**-4 * exact.abs().max()  # e4m3 keeps three bits after the first
