"""What the figures show, read back from the drawn artists and from the files."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import gaussian_kde

from dfbench.data.sources import CATALOGUE
from dfbench.features.plots import (
    LOOKS,
    build_feature_report,
    density,
    draw_panels,
    draw_sources,
    write_feature_report,
)
from dfbench.features.schema import FEATURES
from dfbench.features.statistics import SourceFeatures
from dfbench.figures import FORMATS, NamedFigure


def source(name: str, low: float, high: float, count: int = 40) -> SourceFeatures:
    """Evenly spread values, all features alike."""
    known = CATALOGUE.get(name)
    values = pd.DataFrame({feature: np.linspace(low, high, count) for feature in FEATURES})
    return SourceFeatures(name, known and known.category, bool(known and known.stand_in), values)


ALL_KINDS = [source("Flick8k", 0, 50), source("LIVE", 50, 60), source("edit", 20, 80), source("NOVA", 0, 100)]


def write_csvs(folder: Path, *names: str, count: int = 30) -> Path:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for name in names:
        frame = pd.DataFrame({"image": [f"{name}/{i}.jpg" for i in range(count)]})
        for feature in FEATURES:
            frame[feature] = generator.normal(100, 20, count)
        frame.to_csv(folder / f"{name}.csv", index=False)
    return folder


def curves(drawn: NamedFigure, panel: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Feature -> (x, y) of its curve or line in a panel."""
    features = {look.colour: feature for feature, look in LOOKS.items()}
    lines = drawn.figure.axes[panel].lines
    return {features[line.get_color()]: tuple(map(np.asarray, line.get_data())) for line in lines}


# -------------------------------------------------------------------------------------------------------------- density


@pytest.mark.parametrize("count", [2, 300, 20_000])
def test_density_is_scotts(count: int) -> None:
    values = np.random.default_rng(count).gamma(3, 10, count)
    grid = np.linspace(-50, 200, 1000)
    expected = gaussian_kde(values)(grid)
    curve = density(values, grid)
    assert curve == pytest.approx(expected, abs=1e-3 * expected.max())
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0, 3.0]])
def test_no_density_of_a_single_value(values: list[float]) -> None:
    assert density(np.array(values), np.linspace(0, 10, 50)) is None


def test_no_density_of_what_is_narrower_than_a_line() -> None:
    grid = np.linspace(0, 100, 128)
    values = np.random.default_rng(0).normal(50, 1, 500)
    values = 50 + (values - values.mean()) / values.std(ddof=1)
    assert density(50 + 0.99 * (values - 50), grid) is None
    assert density(50 + 1.01 * (values - 50), grid) is not None


@pytest.mark.parametrize("count", [1000, 100_000])
def test_no_peak_falls_between_the_points(count: int) -> None:
    """Two values half-way between points, and a bandwidth far below a step."""
    grid = np.linspace(0, 100, 101)
    curve = density(np.tile([48.5, 51.5], count), grid)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=0.1)
    assert curve.max() > 0.2


# --------------------------------------------------------------------------------------------------- the paper's figure


def test_four_panels_with_every_feature() -> None:
    drawn = draw_panels(ALL_KINDS, "common")
    titles = [panel.get_title(loc="left") for panel in drawn.figure.axes]
    assert titles == ["(a) Real, undistorted", "(b) Real, distorted", "(c) AI-edited", "(d) AI-generated"]
    for panel in range(4):
        assert set(curves(drawn, panel)) == set(FEATURES)
    assert drawn.figure.legends[0].get_texts()[0].get_text() == "Brightness"
    assert drawn.figure.get_size_inches()[0] == 3.5


@pytest.mark.slow
def test_common_and_panel_normalisation() -> None:
    """LIVE's values lie evenly from 50 to 60, those of all images from 0 to 100."""
    positions = {}
    for normalise in ("common", "panel"):
        x, y = curves(draw_panels(ALL_KINDS, normalise), 1)["si"]
        positions[normalise] = (x * y).sum() / y.sum(), y.max()
    assert positions["common"] == (pytest.approx(0.55, abs=0.01), pytest.approx(10, rel=0.15))  # 1 / (0.6 - 0.5)
    assert positions["panel"] == (pytest.approx(0.5, abs=0.01), pytest.approx(1, rel=0.15))
    assert (
        "normalised over the images of all panels together (Brightness 0 to 100;"
        in draw_panels(ALL_KINDS, "common").caption
    )
    assert "normalised over the images of each panel by itself" in draw_panels(ALL_KINDS, "panel").caption
    assert draw_panels(ALL_KINDS, "panel").figure._supxlabel.get_text().endswith("range of the panel")


def test_constant_and_single_row_sources_are_lines() -> None:
    sources = [source("Flick8k", 25, 25), source("edit", 75, 75, count=1), source("NOVA", 0, 100)]
    drawn = draw_panels(sources, "common")
    for panel, expected in ((0, 0.25), (2, 0.75)):
        for x, y in curves(drawn, panel).values():
            assert list(x) == [expected, expected]
            assert list(y) == [0, 1]  # from the bottom of the panel to its top
    assert [text.get_text() for text in drawn.figure.axes[1].texts] == ["no images"]
    assert "(c) AI-edited: 1 image (edit)" in drawn.caption
    alone = curves(draw_panels(sources[:1], "common"), 0)
    assert len({x[0] for x, _ in alone.values()}) == len(FEATURES)  # side by side, none hidden


def test_nearly_constant_sources_are_lines_and_leave_the_others_their_height() -> None:
    rng = np.random.default_rng(0)
    spread = source("LIVE", 40, 40, count=500)
    spread.values[:] += rng.normal(0, 0.02, spread.values.shape)
    sources = [source("Flick8k", 0, 100), spread, source("edit", 60, 60.0001)]
    drawn = draw_panels(sources, "common")
    for panel, expected in ((1, 0.4), (2, 0.6)):
        for x, y in curves(drawn, panel).values():
            assert list(x) == [pytest.approx(expected, abs=0.001)] * 2
            assert list(y) == [0, 1]
    assert drawn.figure.axes[0].get_ylim()[1] < 2  # Flick8k's evenly spread values have a density of 1


def test_unknown_sources_have_a_panel_of_their_own() -> None:
    drawn = draw_panels([*ALL_KINDS, source("my photos", 0, 30)], "common")
    assert drawn.figure.axes[4].get_title(loc="left") == "(e) Other sources"
    assert "(e) Other sources: 40 images (my photos)" in drawn.caption


def test_a_missing_feature_is_left_out() -> None:
    features = source("NOVA", 0, 100)
    features.values["spectral_slope"] = np.nan
    assert "spectral_slope" not in curves(draw_panels([features], "common"), 3)


# ------------------------------------------------------------------------------------------------------ small multiples


def test_every_source_has_a_row() -> None:
    drawn = draw_sources([*ALL_KINDS, source("demo_blur", 5, 5), source(r"cost $\oops$", 0, 9, count=1)], "si")
    (axes,) = drawn.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *(r"cost $\oops$", "demo_blur*", "NOVA", "edit", "LIVE", "Flick8k")
    ]
    assert [text.get_text() for text in axes.texts] == ["1", "40", "40", "40", "40", "40"]
    assert len(axes.lines) == 4  # two of the six have a single value and no curve
    for line, row in zip(axes.lines, (2, 3, 4, 5), strict=True):
        assert line.get_ydata().min() >= row
        assert line.get_ydata().max() == pytest.approx(row + 0.85)
    assert axes.get_xlabel().startswith("Spatial information")
    assert drawn.svg()  # a dollar sign is no mathematics


@pytest.mark.filterwarnings("error")
def test_a_name_that_the_font_lacks_is_drawn_without_a_word() -> None:
    assert draw_sources([source("图片", 0, 9)], "si").svg()


@pytest.mark.filterwarnings("error")
def test_every_source_shows_in_its_row() -> None:
    """One image far out, four alike, and 50 that hardly differ: none is skipped, none lies outside the axes."""
    many = [source("Flick8k", 20, 200, 4000), source("Kolors", 30, 190, 4000)]
    few = [source("Janus", 251, 251, 1), source("NOVA", 5, 5, 4), source("PixArt", 100, 100.0002, 50)]
    (axes,) = draw_sources([*many, *few], "brightness").figure.axes
    low, high = axes.get_xlim()
    assert low < 5 < 251 < high
    lines = [path for collection in axes.collections for path in collection.get_paths() if len(path.vertices) == 2]
    upright = {path.vertices[0, 1]: path.vertices for path in lines if np.ptp(path.vertices[:, 0]) == 0}
    for row, expected in ((2, 251), (1, 5), (0, 100.0001)):
        assert upright[row].tolist() == [[pytest.approx(expected), row], [pytest.approx(expected), row + 0.85]]
    assert set(upright) == {0, 1, 2, 3, 4}


def test_a_source_without_the_feature_keeps_its_row() -> None:
    features = source("NOVA", 0, 100)
    features.values["spectral_slope"] = np.nan
    (axes,) = draw_sources([features], "spectral_slope").figure.axes
    assert [text.get_text() for text in axes.texts] == ["0"]


# ------------------------------------------------------------------------------------------------------------- captions


@pytest.mark.slow
def test_captions_state_bandwidth_and_stand_ins(tmp_path: Path) -> None:
    report = build_feature_report(write_csvs(tmp_path, "demo_photos", "Kolors"))
    for figure in report.figures:
        assert "Scott's bandwidth, n^(-1/5) standard deviations" in figure.caption
        assert "stand-ins made for the demo" in figure.caption
        assert "demo_photos" in figure.caption
    assert "stand-in" not in draw_panels(ALL_KINDS, "common").caption


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    report = build_feature_report(write_csvs(tmp_path / "in", "Flick8k", "Kolors"), normalise="panel")
    names = ["feature_distribution", *(f"feature_{feature}" for feature in FEATURES)]
    assert [figure.name for figure in report.figures] == names
    paths = write_feature_report(report, tmp_path / "out")
    assert set(paths) == set((tmp_path / "out").iterdir())
    tables = {"feature_captions.md", "feature_table.csv", "feature_table.md", "feature_table.tex"}
    assert {path.name for path in paths} == {f"{name}.{suffix}" for name in names for suffix in FORMATS} | tables
    with Image.open(tmp_path / "out" / "feature_distribution.png") as image:
        assert image.width == 1050  # 3.5 inches at 300 dots an inch
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
        assert "by itself" in image.info["Description"]
    assert (tmp_path / "out" / "feature_si.pdf").read_bytes().startswith(b"%PDF")
    assert "by itself" in (tmp_path / "out" / "feature_captions.md").read_text()
    first = {path.name: path.read_bytes() for path in paths}
    write_feature_report(build_feature_report(tmp_path / "in", normalise="panel"), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in paths} == first


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "feature_si.svg.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        draw_sources(ALL_KINDS, "si").save(tmp_path)
    assert caught.value.filename == str(tmp_path / "feature_si.svg")


def test_svg_stands_alone_and_beside_others(tmp_path: Path) -> None:
    report = build_feature_report(write_csvs(tmp_path, "Flick8k", "<b>&"))
    clips = []
    for figure in report.figures:
        root = ElementTree.fromstring(figure.svg())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # letters are drawn: no font is needed
        clips.append({clip.get("id") for clip in root.iter("{http://www.w3.org/2000/svg}clipPath")})
    assert all(clips)
    assert len(set.union(*clips)) == sum(map(len, clips))
