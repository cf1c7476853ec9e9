"""Validation split, limits and balance: how many of each, which ones, and that the choice is stable."""

import random
from collections import Counter

import pytest

from dfbench.data.annotations import Sample
from dfbench.data.sources import CATALOGUE, source_of
from dfbench.data.splits import Subset, assign_splits, choose_validation, share_evenly, split_validation
from dfbench.errors import InputError


def images_of(folder="", **counts):
    return [f"DFBench/{source}/{folder}{i:05d}.jpg" for source, n in counts.items() for i in range(n)]


def labels(*images):
    return {image: CATALOGUE[source_of(image)].label for part in images for image in part}


def choose(train, test, **options):
    return assign_splits(train, test, labels(train, test), Subset(**options))


def counts(split_of, split):
    return dict(Counter(source_of(image) for image, other in split_of.items() if other == split))


TRAIN = images_of("train/", Kolors=300, PixArt=200, CLIVE=50, Flick8k=10)
TEST = images_of("test/", Kolors=80, CLIVE=12)


# ------------------------------------------------------------------------------------------------- validation split


def samples_of(**counts):
    return [Sample(f"DFBench/{source}/{i:04d}.jpg", "B", "Real?") for source, n in counts.items() for i in range(n)]


def test_validation_is_stratified_and_keeps_the_order():
    samples = samples_of(Kolors=200, CLIVE=50, LIVE=2, NOVA=1)
    random.Random(0).shuffle(samples)
    training, validation = split_validation(samples, 0.1)
    counts = {
        source: sum(sample.source == source for sample in validation) for source in ("Kolors", "CLIVE", "LIVE", "NOVA")
    }
    # 10 % of 200 and of 50; of 2 at least one; a single image stays in training.
    assert counts == {"Kolors": 20, "CLIVE": 5, "LIVE": 1, "NOVA": 0}
    held_out = set(validation)
    assert training == [sample for sample in samples if sample not in held_out]
    assert validation == [sample for sample in samples if sample in held_out]


def test_validation_does_not_depend_on_the_order_nor_on_other_sources():
    samples = samples_of(Kolors=100, CLIVE=40)
    chosen = {sample.image for sample in split_validation(samples, 0.2)[1]}
    random.Random(1).shuffle(samples)
    assert {sample.image for sample in split_validation(samples, 0.2)[1]} == chosen
    alone = {sample.image for sample in split_validation(samples_of(CLIVE=40), 0.2)[1]}
    assert alone == {image for image in chosen if "CLIVE" in image}


def test_a_larger_fraction_holds_out_more_of_the_same_images():
    images = [sample.image for sample in samples_of(Kolors=300)]
    assert choose_validation(images, 0.05) < choose_validation(images, 0.1) < choose_validation(images, 0.5)


def test_the_choice_is_the_same_on_every_machine():
    """By `sha256sum` of the ten keys: 8.jpg (3351c9d9...), 0.jpg (4ec3e918...) and 5.jpg (79c877dc...) come first."""
    chosen = choose_validation([f"DFBench/Kolors/{i}.jpg" for i in range(10)], 0.3)
    assert chosen == {f"DFBench/Kolors/{i}.jpg" for i in (8, 0, 5)}


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.001, 1), (0.5, 5), (1.0, 9)])
def test_fractions_at_the_ends(fraction, expected):
    assert len(split_validation(samples_of(Kolors=10), fraction)[1]) == expected


# -------------------------------------------------------------------------------------------------- limits and balance


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
    split_of = assign_splits(train, [], label_of, Subset(val_fraction=0, balance=True))
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
