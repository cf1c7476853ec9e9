"""Catalogue of the image sources: the 21 of DFBench and the stand-ins of the demo.

Counts, archives and categories: the data set's page (huggingface.co/datasets/IntMeGroup/DFBench) and the paper's
    feature figure (arXiv:2506.03007).
"""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

REAL, FAKE = "A", "B"
LABELS = (REAL, FAKE)
"""The two answers and labels, everywhere: A = real, B = generated (fake)."""

NUM_TRAIN, NUM_TEST = 436_506, 109_131
"""Annotated rows of the released training and test files; 37,410 and 9,357 of them are real."""


class Category(str, Enum):
    """The paper's four kinds of image, and two for sources that the catalogue does not know."""

    REAL_PRISTINE = "real pristine"
    REAL_DISTORTED = "real distorted"
    AI_EDITED = "AI-edited"
    AI_GENERATED = "AI-generated"
    OTHER_REAL = "other real"
    OTHER_FAKE = "other fake"

    __str__ = str.__str__


@dataclass(frozen=True)
class Source:
    """One source of images. `name` is the folder below `DFBench/`; `archive` is empty where none is published."""

    name: str
    category: Category
    archive: str = ""
    stand_in: bool = False

    @property
    def label(self) -> str:
        """A (real) or B (fake)."""
        return REAL if self.category in (Category.REAL_PRISTINE, Category.REAL_DISTORTED) else FAKE


def _generated(name: str) -> Source:
    return Source(name, Category.AI_GENERATED, f"{name}_000001-040000.zip")


DFBENCH = (
    Source("Flick8k", Category.REAL_PRISTINE, "Flick8kimg.zip"),
    Source("partial_source", Category.REAL_PRISTINE, "partial_source.zip"),
    Source("CLIVE", Category.REAL_DISTORTED, "CLIVE.zip"),
    Source("CSIQ", Category.REAL_DISTORTED, "CSIQ.zip"),
    Source("LIVE", Category.REAL_DISTORTED, "LIVE.zip"),
    Source("TID2013", Category.REAL_DISTORTED, "TID2013.zip"),
    Source("kadid10k", Category.REAL_DISTORTED, "kadid10k.zip"),
    Source("koniq10k", Category.REAL_DISTORTED, "koniq10k_512x384.zip"),
    Source("edit", Category.AI_EDITED, "edit.zip"),
    _generated("Janus"),
    _generated("Kandinsky-3"),
    _generated("Kolors"),
    _generated("LaVi-Bridge"),
    _generated("NOVA"),
    _generated("PixArt"),
    _generated("Playground"),
    _generated("ali_flux_dev"),
    _generated("ali_flux_schnell"),
    _generated("infinity"),
    _generated("sd3_5_large"),
    _generated("sd3_medium"),
)
"""The 21 sources of the benchmark: 8 real, 1 edited, 12 generators."""

DEMO = (
    Source("demo_photos", Category.REAL_PRISTINE, "demo_photos.zip", stand_in=True),
    Source("demo_originals", Category.REAL_PRISTINE, "demo_originals.zip", stand_in=True),
    Source("demo_jpeg", Category.REAL_DISTORTED, "demo_jpeg.zip", stand_in=True),
    Source("demo_blur", Category.REAL_DISTORTED, "demo_blur.zip", stand_in=True),
    Source("demo_noise", Category.REAL_DISTORTED, "demo_noise.zip", stand_in=True),
    Source("demo_inpainted", Category.AI_EDITED, "demo_inpainted.zip", stand_in=True),
    Source("demo_autoencoder", Category.AI_GENERATED, "demo_autoencoder.zip", stand_in=True),
    Source("demo_upsampler", Category.AI_GENERATED, "demo_upsampler.zip", stand_in=True),
    Source("demo_sampler", Category.AI_GENERATED, "demo_sampler.zip", stand_in=True),
)
"""What `scripts/make_demo.py` makes. Figures on these say nothing about DFBench."""

CATALOGUE = {source.name: source for source in DFBENCH + DEMO}


def source_of(image: str) -> str:
    """Name of an image's source: the folder after `DFBench/`, or else the folder that holds the image ("" for none)."""
    return _source_of_folder(image.rpartition("/")[0])


@lru_cache(maxsize=4096)
def _source_of_folder(folder: str) -> str:
    """Remembered, because half a million images lie in a few folders."""
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    after = parts[parts.index("DFBench") + 1 :] if "DFBench" in parts else parts[-1:]
    return after[0] if after else ""


def category_of(source: str, label: str) -> Category:
    """Category of a source's images with this label (A or B); by the label alone where the catalogue does not know the
    source, or knows it with the other label.
    """
    if source in CATALOGUE and not contradicts_catalogue(source, label):
        return CATALOGUE[source].category
    return Category.OTHER_REAL if label == REAL else Category.OTHER_FAKE


def contradicts_catalogue(source: str, label: str) -> bool:
    """Whether a label (A, B or "" for none) is not the one that all images of a source of the catalogue have."""
    return bool(label) and source in CATALOGUE and CATALOGUE[source].label != label
