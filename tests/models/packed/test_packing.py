"""Packed attention and rotation against definitions written out in float64."""

import pytest
import torch
from torch import Tensor

from dfbench.models.packed.packing import Segments, attend, rotate


def masked_softmax(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attention by its definition, one segment: (Nq, H, D), (Nk, Hkv, D) -> (Nq, H, D), in float64."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    output = torch.zeros_like(query)
    shared = query.shape[1] // key.shape[1]  # query heads for each key-value head
    for head in range(query.shape[1]):
        for i in range(len(query)):
            # The last query sees all keys, the one before it all but the last, and so on.
            visible = len(key) - (len(query) - 1 - i) if causal else len(key)
            k, v = key[:visible, head // shared], value[:visible, head // shared]
            weights = ((k @ query[i, head]) / query.shape[2] ** 0.5).exp()
            output[i, head] = (weights[:, None] * v).sum(dim=0) / weights.sum()
    return output


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("query_lengths", "key_lengths"),
    [
        ([5, 1, 9], [5, 1, 9]),  # a prompt attends to itself
        ([5, 1, 9], [8, 4, 12]),  # three tokens stand before each prompt
        ([1, 1, 1], [5, 1, 9]),  # the last tokens alone
        ([7], [7]),
    ],
)
def test_attend_equals_the_definition(heads, causal, query_lengths, key_lengths):
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(sum(query_lengths), heads[0], 8, generator=rng)
    key, value = torch.randn(2, sum(key_lengths), heads[1], 8, generator=rng)
    found = attend(query, key, value, Segments.of(query_lengths), Segments.of(key_lengths), causal=causal)
    parts = zip(query.split(query_lengths), key.split(key_lengths), value.split(key_lengths), strict=True)
    expected = torch.cat([masked_softmax(*part, causal=causal) for part in parts])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_attend_leaves_padding_alone():
    """Empty segments after the prompts, and tokens that belong to none."""
    rng = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 12, 2, 4, generator=rng)
    padded = attend(query, key, value, *[Segments.of([4, 3], size=5, max_seqlen=9)] * 2, causal=True)
    exact = attend(query[:7], key[:7], value[:7], *[Segments.of([4, 3])] * 2, causal=True)
    assert padded.shape == query.shape
    assert torch.equal(padded[:7], exact)
    assert padded.isfinite().all()


def test_rotation_is_multiplication_by_a_complex_number():
    """Channels d and d + D/2 are the real and imaginary part; each position turns them by its angle."""
    rng = torch.Generator().manual_seed(2)
    tensor = torch.randn(6, 3, 8, generator=rng)
    angles = torch.rand(6, 4, generator=rng) * 6.28
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    turned = torch.complex(*tensor.double().chunk(2, dim=-1)) * torch.polar(
        torch.ones(6, 1, 4).double(), angles[:, None].double()
    )
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(tensor, cos, sin).double(), expected, rtol=0, atol=1e-6)
