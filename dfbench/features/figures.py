"""What the feature figures share: style and colours, the density of a feature, and a drawn figure as file or text.

Drawn at the width of a column (3.5 inches) in DejaVu Sans, which ships with matplotlib, and in Okabe and Ito's colours,
which colour-blind readers tell apart.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from dfbench.data.sources import Category
from dfbench.io import atomic_write

FORMATS = ("svg", "png", "pdf")

COLUMN_WIDTH = 3.5
"""Inches; two columns of a paper are about 7.1 inches wide."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "dfbench",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}

NAMES = {
    "brightness": "Brightness",
    "contrast": "Contrast",
    "colorfulness": "Colorfulness",
    "si": "Spatial information",
    "spectral_slope": "Spectral slope",
}
UNITS = {"brightness": "0–255", "contrast": "0–127.5", "colorfulness": "of 8-bit RGB", "si": "of 8-bit gray"} | {
    "spectral_slope": "log power over log frequency"
}

LINES = {
    "brightness": ("#D55E00", "-"),
    "contrast": ("#0072B2", "-"),
    "colorfulness": ("#009E73", "--"),
    "si": ("#CC79A7", "-."),
    "spectral_slope": ("#000000", ":"),
}
"""Colour and dashes of each feature: told apart without colour, too."""

PANELS: Mapping[Category | None, tuple[str, str]] = {
    Category.REAL_PRISTINE: ("Real, undistorted", "#0072B2"),
    Category.REAL_DISTORTED: ("Real, distorted", "#56B4E9"),
    Category.AI_EDITED: ("AI-edited", "#E69F00"),
    Category.AI_GENERATED: ("AI-generated", "#D55E00"),
    None: ("Other sources", "#999999"),
}
"""Title and colour of each kind of source."""

# Writing a PDF, it tells in 20 lines how it cut each font down.
logging.getLogger("fontTools").setLevel(logging.WARNING)

NARROWEST = 0.01
"""Standard deviation, as a share of what is drawn, below which values are a line: their curve would be no wider."""

_MOST_UNBINNED = 5000
_BINS = 2048


@dataclass(frozen=True)
class FeatureFigure:
    """One drawn figure. name: file name without suffix. title: a few words. caption: what a paper prints below it."""

    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """The figure as an `<svg>` element, the same characters each time."""
        text = io.StringIO()
        self._save(text, "svg")
        return text.getvalue()[text.getvalue().index("<svg") :]

    def save(self, output_dir: Path) -> list[Path]:
        """Write the figure in all FORMATS, each put in place at once; the paths. An OSError has the file's name."""
        output_dir.mkdir(parents=True, exist_ok=True)
        paths = [output_dir / f"{self.name}.{suffix}" for suffix in FORMATS]
        for path, suffix in zip(paths, FORMATS, strict=True):
            with atomic_write(path) as temporary:
                self._save(temporary, suffix)
        return paths

    def _save(self, target: Path | io.StringIO, suffix: str) -> None:
        """The caption goes into the file's metadata, the date stays out of them."""
        metadata = {
            "svg": {"Title": self.title, "Description": self.caption, "Date": None},
            "png": {"Title": self.title, "Description": self.caption},
            "pdf": {"Title": self.title, "Subject": self.caption, "CreationDate": None},
        }[suffix]
        # The names of clip paths and glyphs are hashed with a salt: one a figure keeps them apart on one page.
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            self.figure.savefig(target, format=suffix, metadata=metadata)


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


def laid_out(figure: Figure) -> Figure:
    """The figure with its layout settled: otherwise each format would work it out again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure
