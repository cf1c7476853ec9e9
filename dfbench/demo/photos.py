"""Real photographs that scikit-image, scikit-learn and matplotlib carry in their wheels: random crops of them, and
ordinary distortions of those.

Each photograph is divided once, by place: crops for training come from its left part, crops for testing from its right
part, and a strip between the two is used by neither. So no test image shows a place that a training image shows, and
remembering places does not help.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from PIL import Image, ImageFilter

from dfbench.errors import InputError

IMAGE_SIDE = 112
"""Pixels on each side of every demo image: a multiple of Qwen2.5-VL's 28, so that its processor resizes nothing."""

PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
"""(package, path inside it) of the colour photographs that are used; all lie on the disk once the packages do."""

TRAIN_PART, TEST_PART = (0.0, 0.62), (0.64, 1.0)
"""The columns, as fractions of a photograph's width, that training and test crops may touch."""

LARGEST_CROP = 1.7
"""Crops are cut at 1 to this many times IMAGE_SIDE and shrunk; enlarging would leave traces like those of fakes."""

LEAST_CONTRAST = 10.0
"""Standard deviation of the gray levels (0 to 255) below which a crop is drawn again: empty sky shows nothing."""


@dataclass(frozen=True)
class Regions:
    """One part of every photograph: uint8 arrays (height, width, 3), in the order of PHOTOGRAPHS."""

    pixels: Sequence[np.ndarray]

    def crop(self, rng: np.random.Generator) -> np.ndarray:
        """A random crop, half of them mirrored: uint8 (IMAGE_SIDE, IMAGE_SIDE, 3)."""
        while True:
            pixels = self.pixels[rng.integers(len(self.pixels))]
            height, width, _ = pixels.shape
            side = int(rng.integers(IMAGE_SIDE, min(height, width, round(LARGEST_CROP * IMAGE_SIDE)) + 1))
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            crop = pixels[top : top + side, left : left + side]
            if crop.mean(axis=2).std() >= LEAST_CONTRAST:
                shrunk = Image.fromarray(crop).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
                return np.asarray(shrunk)[:, :: rng.choice([-1, 1])].copy()

    def crops(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (count, IMAGE_SIDE, IMAGE_SIDE, 3)."""
        return np.stack([self.crop(rng) for _ in range(count)])


def load_regions() -> tuple[Regions, Regions]:
    """The training and the test part of every photograph. Raises InputError where a package lacks its photograph."""
    photographs = [_load(package, path) for package, path in PHOTOGRAPHS]
    train, test = (
        Regions([pixels[:, round(low * pixels.shape[1]) : round(high * pixels.shape[1])] for pixels in photographs])
        for low, high in (TRAIN_PART, TEST_PART)
    )
    return train, test


def _load(package: str, path: str) -> np.ndarray:
    try:
        with (files(package) / path).open("rb") as file, Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (ModuleNotFoundError, FileNotFoundError):
        raise InputError(
            f"package {package}: the photograph {path} is not in it. Install the versions of requirements.txt."
        ) from None


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image as JPEG of this quality leaves it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """An image under a Gaussian blur of this standard deviation in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """An image under white noise of this standard deviation in gray levels, rounded and clipped to 0 to 255."""
    noisy = image + rng.normal(0, sigma, image.shape)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)
