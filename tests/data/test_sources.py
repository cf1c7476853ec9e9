"""The catalogue against what is published about the data set."""

import pytest

from dfbench.data.sources import (
    CATALOGUE,
    DEMO,
    DFBENCH,
    Category,
    Source,
    category_of,
    contradicts_catalogue,
    source_of,
)


def test_the_benchmark_has_eight_real_one_edited_and_twelve_generated_sources():
    counts = {category: sum(source.category is category for source in DFBENCH) for category in Category}
    assert counts[Category.REAL_PRISTINE] == 2
    assert counts[Category.REAL_DISTORTED] == 6
    assert counts[Category.AI_EDITED] == 1
    assert counts[Category.AI_GENERATED] == 12
    assert [source.label for source in DFBENCH].count("A") == 8


def test_archives_are_named_as_published():
    archives = {source.name: source.archive for source in DFBENCH}
    assert archives["Flick8k"] == "Flick8kimg.zip"
    assert archives["koniq10k"] == "koniq10k_512x384.zip"
    assert archives["Kandinsky-3"] == "Kandinsky-3_000001-040000.zip"
    assert archives["CLIVE"] == "CLIVE.zip"


def test_names_and_archives_are_unique_and_the_demo_is_marked():
    every = DFBENCH + DEMO
    assert len(CATALOGUE) == len(every) == 30
    assert len({source.archive for source in every}) == len(every)
    assert all(source.stand_in for source in DEMO)
    assert not any(source.stand_in for source in DFBENCH)
    assert {source.category for source in DEMO} == {source.category for source in DFBENCH}


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("DFBench/Kolors/000002.jpg", "Kolors"),
        ("DFBench/LIVE/gblur/img1.bmp", "LIVE"),
        ("/data/x/DFBench/LIVE/gblur/img1.bmp", "LIVE"),
        ("my/photos/1.jpg", "photos"),
        ("1.jpg", ""),
        ("DFBench/1.jpg", ""),
    ],
)
def test_source_of(image, source):
    assert source_of(image) == source


def test_category_and_label():
    assert category_of("edit", "B") is Category.AI_EDITED
    assert category_of("Flick8k", "A") is Category.REAL_PRISTINE
    assert category_of("Flick8k", "B") is Category.OTHER_FAKE
    assert category_of("edit", "A") is Category.OTHER_REAL
    assert category_of("my_photos", "A") is Category.OTHER_REAL
    assert category_of("my_generator", "B") is Category.OTHER_FAKE
    assert Source("x", Category.AI_EDITED).label == "B"
    assert Source("x", Category.REAL_DISTORTED).label == "A"
    assert str(Category.REAL_PRISTINE) == f"{Category.REAL_PRISTINE}" == "real pristine"


@pytest.mark.parametrize(
    ("source", "label", "contradicts"),
    [
        ("CLIVE", "B", True),
        ("CLIVE", "A", False),
        ("CLIVE", "", False),
        ("Kolors", "A", True),
        ("edit", "B", False),
        ("my_photos", "B", False),
        ("", "A", False),
    ],
)
def test_a_label_may_contradict_the_catalogue(source, label, contradicts):
    assert contradicts_catalogue(source, label) is contradicts
