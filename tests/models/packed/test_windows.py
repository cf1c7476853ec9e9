"""The window kernel against rotation and attention as the rest of the code does them, in Triton's interpreter (CPU)."""

import pytest
import torch
from builders import interpret

from dfbench.models.packed import windows
from dfbench.models.packed.packing import Segments

COMPARE = """
import torch
from dfbench.models.packed.packing import Segments, attend, rotate
from dfbench.models.packed.windows import attend_windows

torch.manual_seed(0)
lengths, heads = [64, 16, 4, 1, 64], 2
tokens = sum(lengths)
segments = Segments.of(lengths, size=7, max_seqlen=64)  # two empty windows at the end
for size in (32, 80, 128):
    qkv = torch.randn(tokens + 5, 3, heads, size)  # and five rows that belong to none
    angles = torch.randn(tokens + 5, size // 2).repeat(1, 2)
    got = attend_windows(qkv, angles.cos(), angles.sin(), segments.cu_seqlens)
    query, key, value = qkv.unbind(1)
    query, key = (rotate(part, angles.cos(), angles.sin()) for part in (query, key))
    expected = attend(query, key, value, segments, segments, causal=False)
    print((got - expected)[:tokens].abs().max().item())
"""


@pytest.mark.slow
def test_the_kernel_equals_rotation_and_attention() -> None:
    pytest.importorskip("triton")
    errors = interpret(COMPARE)
    assert len(errors) == 3
    assert max(errors) < 1e-5, "heads of 32, 80 and 128"


def test_the_kernel_is_left_out_on_a_cpu() -> None:
    assert not windows.fits(torch.zeros(64, 3, 2, 80, dtype=torch.bfloat16), Segments.of([64]))
