"""Width, height, file size and format of many images, out of the feature CSVs or the files' headers."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dfbench.data.images import DECODER_ERRORS, FORMATS, MAX_PIXELS
from dfbench.parallel import progress_bar
from dfbench.paths import result_csvs

FACTS = ("width", "height", "bytes", "format")

_NUMBERS = dict.fromkeys(FACTS[:3], np.float64)


def read_facts(images: Sequence[str], image_root: Path, features_dir: Path | None, *, quiet: bool) -> pd.DataFrame:
    """FACTS of every image, in the order given (index: image)."""
    facts = _facts_of_features(features_dir) if features_dir and features_dir.is_dir() else pd.DataFrame()
    missing = [image for image in images if image not in facts.index]
    rows = [read_header(image_root / image) for image in progress_bar(missing, "reading headers", "images", quiet)]
    from_files = pd.DataFrame(rows, index=pd.Index(missing, dtype=object), columns=list(FACTS))
    tables = [table for table in (facts, from_files) if len(table)]
    found = pd.concat([table.astype({**_NUMBERS, "format": object}) for table in tables])
    found = found.loc[list(images), list(FACTS)]
    return found.fillna({"format": ""})


def _facts_of_features(folder: Path) -> pd.DataFrame:
    """FACTS out of the CSVs of `feature_distribution.py` that have them."""
    tables = []
    for path in result_csvs(folder):
        try:
            table = pd.read_csv(path, usecols=["image", *FACTS], index_col="image", encoding="utf-8-sig")
            tables.append(table.astype(_NUMBERS))
        except ValueError:
            continue  # upstream's five columns only, or no numbers: the headers will say
    facts = pd.concat(tables) if tables else pd.DataFrame()
    return facts[~facts.index.duplicated()]


def read_header(path: Path) -> tuple[float, float, float, str]:
    """FACTS of one file without decoding its pixels; NaN and "" where it is missing or no image."""
    try:
        num_bytes = os.stat(path).st_size
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                return image.width, image.height, num_bytes, image.format or ""
    except DECODER_ERRORS:
        pass
    return math.nan, math.nan, math.nan, ""
