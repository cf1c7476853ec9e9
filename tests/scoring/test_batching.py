"""Which images share a batch, and which process gets it."""

import numpy as np
import pytest

from dfbench.data.annotations import Sample
from dfbench.models.base import SequenceSize
from dfbench.scoring.batching import UNKNOWN, make_plan, shard


def plan_of(sizes: list[tuple[int, int]], **options) -> list[list[int]]:
    samples = [Sample(f"{i}.jpg", "A", "Real?") for i in range(len(sizes))]
    plan = make_plan(
        samples, [SequenceSize(*size) for size in sizes], **{"token_budget": 100, "batch_size": None, **options}
    )
    for batch in plan.batches:
        assert batch.total.tokens <= plan.shape.tokens
        assert batch.total.vision <= plan.shape.vision
        assert sum(size != UNKNOWN for size in batch.sizes) <= plan.shape.prompts
    return [[int(sample.image[:-4]) for sample in batch.samples] for batch in plan.batches]


def test_an_image_goes_into_the_first_batch_with_room():
    # Two of 40 are at most 100, three are not; 40 and 60 just fit; 30 has no room beside 40 + 40, 10 has.
    assert plan_of([(40, 4), (40, 4), (40, 4), (60, 6), (30, 3), (10, 1)]) == [[0, 1, 5], [2, 3], [4]]


def test_few_batches_are_open_side_by_side():
    """The ninth large image closes the fullest batch: the small one after it goes into the next."""
    large = [(91, 0), *[(90, 0)] * 8]
    assert plan_of([*large, (9, 0)])[:2] == [[0], [1, 9]]
    assert plan_of([*large[:8], (9, 0)])[0] == [0, 8]


def test_mixed_sizes_are_packed_tightly():
    sizes = np.random.default_rng(0).choice([1405, 360, 200, 330], 2000, p=[0.66, 0.15, 0.1, 0.09])
    samples = [Sample(f"{i}.jpg", "A", "Real?") for i in range(len(sizes))]
    sizes = [SequenceSize(int(size), 4 * int(size)) for size in sizes]
    plan = make_plan(samples, sizes, token_budget=32768, batch_size=None)
    assert plan.packing_efficiency > 0.98


def test_an_image_above_the_budget_has_a_batch_to_itself():
    assert plan_of([(10, 1), (500, 50), (10, 1)]) == [[0, 2], [1]]


def test_batch_size_bounds_the_images():
    assert plan_of([(10, 1)] * 7, batch_size=3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_images_of_many_patches_fill_a_batch_too():
    """On average a token has one patch, so 100 tokens have a budget of 103; 60 + 60 patches are too many."""
    assert plan_of([(10, 60), (10, 60), (100, 0), (100, 100)]) == [[0], [1], [2], [3]]


def test_images_that_cannot_be_used_take_no_room():
    assert plan_of([(60, 6), (0, 0), (0, 0), (60, 6)]) == [[0, 1, 2], [3]]
    assert plan_of([(0, 0)] * 3) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("sizes", "uniform"),
    [
        ([(10, 4)] * 3, True),
        ([(10, 4), (0, 0), (10, 4)], True),  # what cannot be used is never laid out
        ([(10, 4), (9, 4)], False),
        ([(10, 4), (10, 5)], False),
    ],
)
def test_a_run_is_uniform_if_all_its_prompts_are_alike(sizes, uniform):
    """Also where every batch holds one image, so that the largest fills its batch."""
    samples = [Sample(f"{i}.jpg", "A", "Real?") for i in range(len(sizes))]
    plan = make_plan(samples, [SequenceSize(*size) for size in sizes], token_budget=100, batch_size=1)
    assert plan.shape.uniform is uniform


def test_shards_are_even():
    sizes = [9, 5, 4, 3, 3, 2, 1]
    shares = shard([0, 1, 2, 3, 4, 5, 6], sizes, 3)
    # The largest first, to whoever has least: 9 | 5 4 | 3 3 2 1 -> 9, 9, 9.
    assert sorted(sum(sizes[i] for i in share) for share in shares) == [9, 9, 9]
    assert sorted(i for share in shares for i in share) == [0, 1, 2, 3, 4, 5, 6]
    assert all(share == sorted(share) for share in shares)


def test_more_processes_than_batches():
    assert shard([4], [0, 0, 0, 0, 7], 3) == [[4], [], []]
    assert shard([], [1, 2], 2) == [[], []]
