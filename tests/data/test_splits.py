"""Validation split, limits and balance: how many of each, which ones, and that the choice is stable."""

import random
from collections import Counter

import pytest

from dfbench.data.sources import CATALOGUE, source_of
from dfbench.data.splits import Subset, choose_images, share_evenly
from dfbench.errors import InputError


def images_of(folder="", **counts):
    return [f"DFBench/{source}/{folder}{i:05d}.jpg" for source, n in counts.items() for i in range(n)]


def labels(*images):
    return {image: CATALOGUE[source_of(image)].label for part in images for image in part}


def choose(train, test, **options):
    return choose_images(train, test, labels(train, test), Subset(**options))


def counts(split_of, split):
    return dict(Counter(source_of(image) for image, other in split_of.items() if other == split))


TRAIN = images_of("train/", Kolors=300, PixArt=200, CLIVE=50, Flick8k=10)
TEST = images_of("test/", Kolors=80, CLIVE=12)


def test_everything_is_chosen_by_default():
    split_of = choose(TRAIN, TEST)
    # 1 % of 300, 200, 50 and 10, and at least one of each.
    assert counts(split_of, "val") == {"Kolors": 3, "PixArt": 2, "CLIVE": 1, "Flick8k": 1}
    assert counts(split_of, "train") == {"Kolors": 297, "PixArt": 198, "CLIVE": 49, "Flick8k": 9}
    assert counts(split_of, "test") == {"Kolors": 80, "CLIVE": 12}
    assert set(split_of) == {*TRAIN, *TEST}


def test_no_validation():
    assert counts(choose(TRAIN, TEST, val_fraction=0), "val") == {}


def test_a_limit_counts_validation_in_and_leaves_small_sources_whole():
    split_of = choose(TRAIN, TEST, limit_per_source=20, val_fraction=0.1)
    assert counts(split_of, "val") == {"Kolors": 2, "PixArt": 2, "CLIVE": 2, "Flick8k": 1}
    assert counts(split_of, "train") == {"Kolors": 18, "PixArt": 18, "CLIVE": 18, "Flick8k": 9}
    assert counts(split_of, "test") == {"Kolors": 20, "CLIVE": 12}


@pytest.mark.parametrize(("limit", "train", "val"), [(1, 1, 0), (2, 1, 1), (3, 2, 1)])
def test_small_limits_keep_a_training_row(limit, train, val):
    split_of = choose(TRAIN, [], limit_per_source=limit)
    assert counts(split_of, "train")["Kolors"] == train
    assert counts(split_of, "val").get("Kolors", 0) == val


def test_a_subset_neither_depends_on_the_order_nor_trains_on_validation_images_of_the_whole():
    whole = choose(TRAIN, TEST, val_fraction=0.1)
    small = choose(TRAIN, TEST, val_fraction=0.1, limit_per_source=20, seed=5)
    assert all(whole[image] == split for image, split in small.items())
    shuffled = random.Random(0).sample(TRAIN, len(TRAIN))
    assert choose(shuffled, TEST[::-1], val_fraction=0.1, limit_per_source=20, seed=5) == small


def test_larger_limits_contain_smaller_ones_and_seeds_differ():
    small, large, other = (
        {image for image, split in choose(TRAIN, TEST, limit_per_source=limit, seed=seed).items() if split == "train"}
        for limit, seed in ((20, 1), (40, 1), (20, 2))
    )
    assert small < large
    assert small != other


def test_balance_cuts_fakes_evenly_in_every_file():
    split_of = choose(TRAIN, TEST, balance=True, val_fraction=0.1)
    # Training: 45 + 9 real; validation: 5 + 1; test: 12. Fakes share that number evenly.
    assert counts(split_of, "train") == {"CLIVE": 45, "Flick8k": 9, "Kolors": 27, "PixArt": 27}
    assert counts(split_of, "val") == {"CLIVE": 5, "Flick8k": 1, "Kolors": 3, "PixArt": 3}
    assert counts(split_of, "test") == {"CLIVE": 12, "Kolors": 12}


def test_balance_cuts_real_images_where_they_are_more():
    train = images_of(Kolors=10, CLIVE=200, LIVE=3)
    split_of = choose(train, [], balance=True, val_fraction=0)
    assert counts(split_of, "train") == {"Kolors": 10, "CLIVE": 7, "LIVE": 3}


def test_balance_goes_by_labels_where_one_unknown_source_has_both():
    train = [f"DFBench/mine/{i}.jpg" for i in range(30)]
    label_of = {image: "A" if i < 10 else "B" for i, image in enumerate(train)}
    split_of = choose_images(train, [], label_of, Subset(val_fraction=0, balance=True))
    assert Counter(label_of[image] for image in split_of) == {"A": 10, "B": 10}


def test_balance_needs_both_sides():
    with pytest.raises(InputError, match="one label only"):
        choose(images_of(Kolors=10), [], balance=True)


def test_limit_and_balance_together():
    split_of = choose(TRAIN, TEST, limit_per_source=10, balance=True, val_fraction=0)
    assert counts(split_of, "train") == {"CLIVE": 10, "Flick8k": 10, "Kolors": 10, "PixArt": 10}


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ({"a": 10, "b": 10}, 10, {"a": 5, "b": 5}),
        ({"a": 10, "b": 10}, 11, {"a": 5, "b": 6}),
        ({"a": 2, "b": 10, "c": 10}, 12, {"a": 2, "b": 5, "c": 5}),
        ({"c": 1, "b": 2, "a": 30}, 33, {"a": 30, "b": 2, "c": 1}),
        ({"a": 5, "b": 5}, 0, {"a": 0, "b": 0}),
        ({"a": 5}, 5, {"a": 5}),
        ({}, 0, {}),
    ],
)
def test_share_evenly(sizes, total, shares):
    assert share_evenly(sizes, total) == shares
