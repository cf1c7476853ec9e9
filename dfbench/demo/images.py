"""The demo's images, source by source: photographs, ordinary distortions of photographs, and stand-in fakes."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from dfbench.data.sources import DEMO, FAKE, REAL
from dfbench.demo.generators import StandIns, reproducible
from dfbench.demo.photos import Regions, load_regions

NUM_IMAGES = {"train": {REAL: 144, FAKE: 180}, "test": {REAL: 40, FAKE: 50}}
"""Images of each source, by split and label: five real and four fake sources give 720 + 720 and 200 + 200 images.

The real data set is 8.6 % real; here both labels are equally frequent.
"""

JPEG_QUALITIES = (20, 40, 60)

BLUR_SIGMAS = (0.7, 1.2, 1.8)
"""Standard deviations in pixels."""

NOISE_SIGMAS = (6.0, 12.0, 20.0)
"""Standard deviations in gray levels (0 to 255)."""


def count_images(split: str) -> int:
    """Number of images of a split, train or test, over all sources."""
    return sum(NUM_IMAGES[split][source.label] for source in DEMO)


def make_images(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """{split: {source: uint8 (count, 112, 112, 3)}} for the splits train and test and every source of DEMO.

    The same seed gives the same pixels on one machine. Takes some twenty seconds, most of them training the stand-ins.
    """
    train, test = load_regions()
    with reproducible(seed):
        stand_ins = StandIns(train, seed)
        return {
            split: _make_split(regions, stand_ins, split, np.random.default_rng([seed, number]))
            for number, (split, regions) in enumerate([("train", train), ("test", test)], start=1)
        }


def _make_split(regions: Regions, stand_ins: StandIns, split: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    num_real, num_fake = NUM_IMAGES[split][REAL], NUM_IMAGES[split][FAKE]

    def real() -> np.ndarray:
        return regions.crops(num_real, rng)

    def other() -> np.ndarray:
        return regions.crops(num_fake, rng)

    to_edit = other()
    images = {
        "demo_photos": real(),
        "demo_originals": to_edit[:num_real],
        "demo_jpeg": _each(jpeg, real(), JPEG_QUALITIES),
        "demo_blur": _each(blur, real(), BLUR_SIGMAS),
        "demo_noise": _each(lambda image, sigma: noise(image, sigma, rng), real(), NOISE_SIGMAS),
        "demo_inpainted": stand_ins.inpaint(to_edit, other(), rng),
        "demo_autoencoder": stand_ins.autoencode(other()),
        "demo_upsampler": stand_ins.upsample(other()),
        "demo_sampler": stand_ins.sample(other(), other(), rng),
    }
    assert set(images) == {source.name for source in DEMO}
    return images


def _each(distort: Callable[[np.ndarray, Any], np.ndarray], images: np.ndarray, strengths: Sequence[Any]) -> np.ndarray:
    """Images distorted one by one, the strengths taking turns."""
    return np.stack([distort(image, strengths[i % len(strengths)]) for i, image in enumerate(images)])


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
