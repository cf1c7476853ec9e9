"""The paper's feature figure, one small-multiples figure for each feature, and their captions and table.

Follows the feature figure of the paper (arXiv:2506.03007): densities of min-max-normalised features in four panels,
real images without and with distortions, AI-edited and AI-generated ones. Drawn at the width of a column, in Okabe and
Ito's colours, which colour-blind readers tell apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import gaussian_kde

from dfbench import figures
from dfbench.data.sources import Category
from dfbench.evaluation.tables import STAND_IN_MARK, STAND_IN_NOTE
from dfbench.features.schema import FEATURES
from dfbench.features.statistics import SourceFeatures, feature_table, pooled, read_features
from dfbench.figures import NamedFigure, drawn_in
from dfbench.io import write_text
from dfbench.table import Table, shortened, write_table

COLUMN_WIDTH = 3.5
"""Inches; two columns of a paper are about 7.1 inches wide."""

STYLE = {
    **figures.STYLE,
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 6.5),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "savefig.dpi": 300,
}


class Look(NamedTuple):
    """How a feature is named and drawn: its lines are told apart without colour, too."""

    name: str
    unit: str
    colour: str
    dashes: str

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})"


LOOKS = {
    "brightness": Look("Brightness", "0–255", "#D55E00", "-"),
    "contrast": Look("Contrast", "0–127.5", "#0072B2", "-"),
    "colorfulness": Look("Colorfulness", "of 8-bit RGB", "#009E73", "--"),
    "si": Look("Spatial information", "of 8-bit gray", "#CC79A7", "-."),
    "spectral_slope": Look("Spectral slope", "log power over log frequency", "#000000", ":"),
}

PANELS: Mapping[Category | None, tuple[str, str]] = {
    Category.REAL_PRISTINE: ("Real, undistorted", "#0072B2"),
    Category.REAL_DISTORTED: ("Real, distorted", "#56B4E9"),
    Category.AI_EDITED: ("AI-edited", "#E69F00"),
    Category.AI_GENERATED: ("AI-generated", "#D55E00"),
    None: ("Other sources", "#999999"),
}
"""Title and colour of each kind of source."""

NARROWEST = 0.01
"""Standard deviation, as a share of what is drawn, below which values are a line: their curve would be no wider."""

_MOST_UNBINNED = 5000
_BINS = 2048
_POINTS = 128
_ROW_HEIGHT = 0.85


@dataclass(frozen=True)
class FeatureReport:
    """All figures, the paper's first, and the table of medians and distances."""

    figures: Sequence[NamedFigure]
    table: Table


def build_feature_report(features_dir: Path, *, normalise: str = "common") -> FeatureReport:
    """Draw and tabulate what `feature_distribution.py` wrote to `features_dir`.

    normalise: "common", one minimum and maximum a feature for all panels, or "panel", one for each panel. Raises
    InputError as `read_features` does.
    """
    sources = read_features(features_dir)
    drawn = [draw_panels(sources, normalise), *(draw_sources(sources, feature) for feature in FEATURES)]
    return FeatureReport(drawn, feature_table(sources))


# ------------------------------------------------------------------------------------------------- the paper's figure


@drawn_in(STYLE)
def draw_panels(sources: Sequence[SourceFeatures], normalise: str) -> NamedFigure:
    """Densities of all features, min-max-normalised, in one panel for each kind of source."""
    kinds = [kind for kind in PANELS if kind or any(source.category is None for source in sources)]
    members = {kind: [source for source in sources if source.category == kind] for kind in kinds}
    rows = (len(kinds) + 1) // 2
    figure = Figure(figsize=(COLUMN_WIDTH, 0.55 + 1.28 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, sharex=True, sharey=True).ravel()
    peaks = []
    for letter, kind, panel in zip("abcde", kinds, axes, strict=False):
        peaks += _draw_panel(panel, members[kind], sources if normalise == "common" else members[kind])
        panel.set_title(f"({letter}) {PANELS[kind][0]}", loc="left")
    for unused in axes[len(kinds) :]:
        unused.remove()
    for panel in axes[len(kinds) - 2 : len(kinds)]:
        panel.tick_params(labelbottom=True)
    axes[0].set(xlim=(0, 1), ylim=(0, 1.05 * max(peaks, default=1)), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    for panel in axes[: len(kinds) : 2]:
        panel.set_ylabel("Density")
    scope = "range of all images" if normalise == "common" else "range of the panel"
    figure.supxlabel(f"Feature, min-max-normalised over the {scope}", fontsize=7)
    handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, label=look.name) for look in LOOKS.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=2, columnspacing=1)
    caption = _panels_caption(sources, members, normalise)
    title = "Feature distributions by kind of image"
    return NamedFigure("feature_distribution", title, _laid_out(figure), STYLE, caption)


def _laid_out(figure: Figure) -> Figure:
    """The figure with its layout settled: otherwise each format would work it out again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _draw_panel(panel: Axes, members: Sequence[SourceFeatures], scope: Sequence[SourceFeatures]) -> list[float]:
    """One panel: each feature of its sources, normalised by its smallest and largest value in those of `scope`.

    Returns the heights of the curves.
    """
    grid, peaks = np.linspace(0, 1, 2 * _POINTS), []
    for (feature, look), beside in zip(LOOKS.items(), np.linspace(0.4, 0.6, len(LOOKS)), strict=True):
        sample = pooled(members, feature)
        if len(sample) == 0:
            continue
        limits = pooled(scope, feature)
        low, high = limits.min(), limits.max()
        scaled = (sample - low) / (high - low) if high > low else np.full(len(sample), beside)
        curve, line = density(scaled, grid), {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.2}
        if curve is None:
            panel.axvline(np.median(scaled), clip_on=False, **line)
        else:
            panel.plot(grid, curve, **line)
            peaks.append(curve.max())
    if not members:
        panel.text(0.5, 0.5, "no images", transform=panel.transAxes, ha="center", va="center", color="0.4")
    return peaks


def _panels_caption(
    sources: Sequence[SourceFeatures], members: Mapping[Category | None, Sequence[SourceFeatures]], normalise: str
) -> str:
    panels = []
    for letter, (kind, shown) in zip("abcde", members.items(), strict=False):
        count = sum(len(source.values) for source in shown)
        names = ", ".join(shortened(source.name, 40) for source in shown) or "none measured"
        panels.append(f"({letter}) {PANELS[kind][0]}: {count:,} image{'s' * (count != 1)} ({names})")
    if normalise == "common":
        pools = {look.name: pooled(sources, feature) for feature, look in LOOKS.items()}
        ranges = (f"{name} {values.min():.4g} to {values.max():.4g}" for name, values in pools.items() if len(values))
        scope = f"over the images of all panels together ({'; '.join(ranges)}), so that panels can be compared"
    else:
        scope = "over the images of each panel by itself, so that positions cannot be compared between panels"
    return (
        f"Distributions of five image features. {'; '.join(panels)}. Each feature is min-max-normalised {scope}; each"
        " image of a panel counts the same. Gaussian kernel densities with Scott's bandwidth, n^(-1/5) standard"
        " deviations of the n normalised values; a vertical line is a feature with a single value, or the median of"
        f" values with a standard deviation below {NARROWEST}; it is near the middle where there is no range to"
        " normalise by." + _stand_ins(sources)
    )


def _stand_ins(sources: Sequence[SourceFeatures], mark: str = "") -> str:
    names = ", ".join(source.name + mark for source in sources if source.stand_in)
    return f" {names}: {STAND_IN_NOTE}." if names else ""


# ------------------------------------------------------------------------------------------------- small multiples


@drawn_in(STYLE)
def draw_sources(sources: Sequence[SourceFeatures], feature: str) -> NamedFigure:
    """Density of one feature in each source, one below the other, over that of all real images."""
    figure = Figure(figsize=(COLUMN_WIDTH, 0.8 + 0.25 * len(sources)), layout="constrained")
    axes = figure.subplots()
    samples = [pooled([source], feature) for source in sources]
    limits = _limits(samples)
    grid = np.linspace(*limits, _POINTS)
    background = density(pooled((source for source in sources if source.is_real), feature), grid)
    names = [shortened(source.name, 20) + STAND_IN_MARK * source.stand_in for source in sources]
    for row, (source, sample) in enumerate(zip(reversed(sources), reversed(samples), strict=True)):
        if background is not None:
            axes.fill_between(grid, row, row + _ROW_HEIGHT * background / background.max(), color="0.87", linewidth=0)
        _draw_row(axes, row, PANELS[source.category][1], sample, grid)
    axes.set(xlim=limits, ylim=(-0.15, len(sources)), xlabel=LOOKS[feature].label)
    axes.hlines(range(len(sources)), *limits, color="0.6", linewidth=0.5)
    axes.set_yticks(_ROW_HEIGHT / 4 + np.arange(len(sources)), names[::-1])
    axes.tick_params(axis="y", length=0, pad=2)
    axes.spines["left"].set_visible(False)
    shown = [kind for kind in PANELS if any(source.category == kind for source in sources)]
    handles = [Line2D([], [], color=PANELS[kind][1], linewidth=3, label=PANELS[kind][0]) for kind in shown]
    handles += [Line2D([], [], color="0.87", linewidth=3, label="All real images")] * (background is not None)
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=1)
    title = f"{LOOKS[feature].name} by source"
    caption = _sources_caption(sources, feature, limits)
    return NamedFigure(f"feature_{feature}", title, _laid_out(figure), STYLE, caption)


def _limits(samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where a feature is drawn: but for one image in a thousand at each end, every source's median, with a margin."""
    medians = [np.median(sample) for sample in samples if len(sample)]
    if not medians:
        return 0.0, 1.0
    low, high = np.quantile(np.concatenate(samples), (0.001, 0.999))
    low, high = min(low, *medians), max(high, *medians)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_row(axes: Axes, row: int, colour: str, values: np.ndarray, grid: np.ndarray) -> None:
    """One source: its density from y = row upwards, its median, and the number of images at the right."""
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "color": "0.35", "fontsize": 6}
    axes.text(1.01, row + _ROW_HEIGHT / 4, f"{len(values):,}", **beside)
    if len(values) == 0:
        return
    median, curve = np.median(values), density(values, grid)
    if curve is None:
        axes.vlines(median, row, row + _ROW_HEIGHT, color=colour, linewidth=1.2)
        return
    curve = row + _ROW_HEIGHT * curve / curve.max()
    axes.fill_between(grid, row, curve, color=colour, alpha=0.35, linewidth=0)
    axes.plot(grid, curve, color=colour, linewidth=0.9)
    axes.vlines(median, row, np.interp(median, grid, curve), color=colour, linewidth=0.9)


def _sources_caption(sources: Sequence[SourceFeatures], feature: str, limits: tuple[float, float]) -> str:
    return (
        f"{LOOKS[feature].label} of the images of each source, their number on the right."
        " Gaussian kernel densities with Scott's bandwidth, n^(-1/5) standard deviations, each drawn to the same"
        " height, with a line at the median; a line alone is a source with a single value, or with a standard deviation"
        f" below {NARROWEST:.0%} of the width. Gray, in every row: the images of all real sources together. Drawn from"
        f" {limits[0]:.4g} to {limits[1]:.4g}, which leaves out at most one image in a thousand at each end."
        f"{_stand_ins(sources, STAND_IN_MARK)}"
    )


# ------------------------------------------------------------------------------------------------------------ density


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    """Gaussian kernel density of values, float64 (N,), at the points of `grid`, evenly spaced.

    None for values that a curve cannot show: a single one, or a standard deviation below NARROWEST of the grid's range.

    The bandwidth is Scott's, N^(-1/5) standard deviations, or half a step of the grid where that is more: narrower
    peaks would fall between its points. More than 5,000 values are counted in 2,048 bins first, which moves the curve
    by less than a thousandth of its height.
    """
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    if deviation < NARROWEST * np.ptp(grid):
        return None
    bandwidth = max(len(values) ** -0.2, (grid[1] - grid[0]) / 2 / deviation)
    if len(values) <= _MOST_UNBINNED:
        return gaussian_kde(values, bw_method=bandwidth)(grid)
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    return gaussian_kde(centres, bw_method=bandwidth, weights=counts)(grid)


# ------------------------------------------------------------------------------------------------------------ files


def write_feature_report(report: FeatureReport, output_dir: Path) -> list[Path]:
    """Write the figures in all FORMATS, `feature_captions.md`, and `feature_table.csv`, `.md` and `.tex`; the paths."""
    figures = [path for figure in report.figures for path in figure.save(output_dir)]
    captions = "\n\n".join(f"**{figure.name}.** {figure.caption}" for figure in report.figures)
    return [
        *figures,
        write_text(output_dir / "feature_captions.md", captions + "\n"),
        *write_table(report.table, output_dir),
    ]
