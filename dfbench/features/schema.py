"""The CSVs of image features: one for each source, one row an image."""

from pathlib import Path

from dfbench.errors import InputError
from dfbench.paths import result_csvs

FEATURES = ("brightness", "contrast", "colorfulness", "si", "spectral_slope")
COLUMNS = ("image", *FEATURES[:4], "width", "height", "format", "bytes", *FEATURES[4:])
"""The header. An empty cell is a feature that the image does not have (see `dfbench.features.compute`)."""

NORMALISATIONS = ("common", "panel")
"""Figures take one range of a feature for all panels, or one for each panel."""


def feature_csvs(folder: Path) -> list[Path]:
    """The CSVs that `feature_distribution.py` wrote to a folder. Raises InputError where there is none."""
    if paths := result_csvs(folder):
        return paths
    raise no_features(folder)


def no_features(folder: Path) -> InputError:
    """What to say of a folder without a measured image."""
    what = "has no CSV with a measured image" if folder.is_dir() else "does not exist"
    return InputError(f"{folder} {what}. Run feature_distribution.py first, or name its output with --features_dir.")
