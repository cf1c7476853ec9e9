"""Reading feature CSVs, medians, and distances from real images against numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dfbench.data.sources import Category
from dfbench.errors import InputError
from dfbench.features.schema import COLUMNS, FEATURES
from dfbench.features.statistics import (
    COLUMNS_OF_TABLE,
    SourceFeatures,
    feature_table,
    kolmogorov_smirnov,
    read_features,
    wasserstein,
)

HEADER = "image,brightness,contrast,colorfulness,si\n"
ROW = "DFBench/x/{}.jpg,120.5,40.25,30,55.75,512,384,JPEG,12345,-2.5\n"


def write(folder: Path, name: str, text: str | None = None) -> Path:
    (folder / name).write_text(",".join(COLUMNS) + "\n" + ROW.format(1) + ROW.format(2) if text is None else text)
    return folder


def source(name: str, category: Category | None, brightness: list[float]) -> SourceFeatures:
    values = pd.DataFrame({feature: np.array(brightness, float) for feature in FEATURES})
    return SourceFeatures(name, category, name.startswith("demo_"), values)


# ------------------------------------------------------------------------------------------------------------- reading


def test_sources_come_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    for name in ("zebra.csv", "demo_blur.csv", "Kolors.csv", "Flick8k.csv", "apes.csv", "Flick8k.errors.csv"):
        write(tmp_path, name)
    write(tmp_path, "LIVE.csv", ",".join(COLUMNS) + "\n")  # nothing measured
    write(tmp_path, "NOVA.part0.csv", ",".join(COLUMNS) + "\nhalf a ro")
    sources = read_features(tmp_path)
    assert [source.name for source in sources] == ["Flick8k", "Kolors", "demo_blur", "apes", "zebra"]
    assert [source.category for source in sources[:3]] == [
        Category.REAL_PRISTINE,
        Category.AI_GENERATED,
        Category.REAL_DISTORTED,
    ]
    assert sources[4].category is None
    assert [source.stand_in for source in sources] == [False, False, True, False, False]
    assert sources[0].values.iloc[0].to_dict() == {
        "brightness": 120.5,
        "contrast": 40.25,
        "colorfulness": 30.0,
        "si": 55.75,
        "spectral_slope": -2.5,
    }


def test_five_columns_are_enough_and_empty_cells_are_missing(tmp_path: Path) -> None:
    write(tmp_path, "edit.csv", "si,image,brightness,contrast,colorfulness\n,a.jpg,1,2,3\n7,b.jpg,1,2,3\n")
    (features,) = read_features(tmp_path)
    assert math.isnan(features.values["si"][0])
    assert features.values["si"][1] == 7
    assert features.values["spectral_slope"].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,brightness\na,1\n", "edit.csv has no column contrast, colorfulness, si"),
        (
            HEADER + "a,1,2,3,4\nb,1,two,3,4\n",
            "edit.csv, row 3, column contrast: 'two' is no number",
        ),
        (HEADER + "a,1,2,3,inf\n", "edit.csv, row 2, column si: 'inf' is no number"),
        (HEADER + "a,1,2,3,4\na,1,2,3,4\n", "edit.csv has the image a in two rows"),
        (HEADER + "a,1,2,3,4,\n", "edit.csv, line 2: 6 cells under a header of 5"),
        (
            HEADER + "\na,1,2,3,4,\nb,1,2,3,4\n",
            "edit.csv, line 3: 6 cells under a header of 5",
        ),
        (HEADER + "a,1,2,3,4\nb,1,2,3,4,5\n", "Expected 5 fields in line 3, saw 6"),
        ("", "No columns to parse"),
        (HEADER + '"a,1\n', "EOF inside string"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "edit.csv", text)
    with pytest.raises(InputError, match=rf"{message}.*Measure the source again"):
        read_features(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist\."):
        read_features(tmp_path / "nowhere")
    write(tmp_path, "edit.csv", ",".join(COLUMNS) + "\n")
    with pytest.raises(InputError, match=r"no CSV with a measured image.*Run feature_distribution.py first"):
        read_features(tmp_path)


# ----------------------------------------------------------------------------------------------------------- distances


def test_distances_by_hand() -> None:
    a, b = np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])
    # Moving each value of a up by 2 gives b. Below 3, half of a and nothing of b has come.
    assert wasserstein(a, b)[0] == 2
    assert kolmogorov_smirnov(a, b) == (0.5, 0, 1)
    assert wasserstein(a, a)[0] == kolmogorov_smirnov(a, a)[0] == 0


def test_interval_of_ks_by_hand() -> None:
    a, b = np.arange(1000.0), np.arange(1000.0) + 500
    # 2.5 % for each side: 2 * sqrt(ln(2 / 0.025) / 2000) = 2 * sqrt(4.382027 / 2000) = 0.0936165
    assert kolmogorov_smirnov(a, b) == pytest.approx((0.5, 0.4063835, 0.5936165), abs=1e-6)


def test_interval_of_wasserstein_is_centred_and_shrinks() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for count in (100, 10_000):
        distance, low, high = wasserstein(generator.normal(3, 1, count), generator.normal(0, 1, count))
        assert low < 3 < high
        assert high - distance == pytest.approx(distance - low)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)  # sqrt(10,000 / 100)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 0.2, 1])
def test_intervals_cover_the_truth(shift: float) -> None:
    """Normal distributions of equal width: wasserstein is the shift, ks is erf(shift / (2 sqrt 2))."""
    covered = np.zeros(2)
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a, b = generator.normal(shift, 1, 100), generator.normal(0, 1, 400)
        for i, (distance, truth) in enumerate([(wasserstein, shift), (kolmogorov_smirnov, math.erf(shift / 8**0.5))]):
            _, low, high = distance(a, b)
            covered[i] += low <= truth <= high
    assert (covered / 200 >= 0.93).all()


def test_few_or_no_images() -> None:
    few, many, none = np.arange(3.0), np.arange(50.0), np.empty(0)
    assert [math.isnan(value) for value in wasserstein(few, many)] == [False, True, True]
    assert not any(math.isnan(value) for value in kolmogorov_smirnov(few, many))
    assert all(math.isnan(value) for value in (*wasserstein(none, many), *kolmogorov_smirnov(many, none)))
    same = np.full(30, 7.0)
    assert wasserstein(same, same) == (0, 0, 0)


# --------------------------------------------------------------------------------------------------------------- table


def test_table_by_hand() -> None:
    sources = [
        source("Flick8k", Category.REAL_PRISTINE, [0, 10]),
        source("LIVE", Category.REAL_DISTORTED, [20, 30]),
        source("Kolors", Category.AI_GENERATED, [100, 110, 120, 130]),
        source("mine", None, [np.nan, 15]),
    ]
    frame = feature_table(sources).frame
    assert tuple(frame.columns) == COLUMNS_OF_TABLE
    assert len(frame) == 4 * len(FEATURES)
    brightness = frame[frame["feature"] == "brightness"].set_index("source")
    # Quartiles lie between the sorted values, at 0.75, 1.5 and 2.25 steps of 10 from the first.
    kolors = brightness.loc["Kolors"]
    assert list(kolors[["median", "quartile_1", "quartile_3", "iqr"]]) == [115, 107.5, 122.5, 15]
    # To the real images (mean 15), 100 further down; Flick8k only to LIVE and the other way round; mine to both, where
    # 15 is on average (15 + 5 + 5 + 15) / 4 = 10 away from them.
    assert list(brightness["wasserstein"]) == [20, 20, 100, 10]
    assert list(brightness["ks"]) == [1, 1, 1, 0.5]
    assert list(brightness["num_images"]) == [2, 2, 4, 2]
    assert list(brightness["num_values"]) == [2, 2, 4, 1]
    assert list(brightness["category"]) == ["real pristine", "real distorted", "AI-generated", "other"]


def test_table_without_real_images_has_no_distances() -> None:
    frame = feature_table([source("Kolors", Category.AI_GENERATED, [1, 2, 3])]).frame
    assert frame[["wasserstein", "ks", "ks_low"]].isna().all(axis=None)


def test_table_marks_stand_ins() -> None:
    table = feature_table([source("demo_photos", Category.REAL_PRISTINE, [1, 2])])
    assert table.rows[0][1] == "demo_photos*"
    assert any("stand-ins" in note for note in table.notes)
    table = feature_table([source("Flick8k", Category.REAL_PRISTINE, [1, 2])])
    assert not any("stand-ins" in note for note in table.notes)
