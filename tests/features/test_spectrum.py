"""The spectral slope of images whose slope is known. The float64 reference is in test_features.py."""

import math

import numpy as np
import pytest

from dfbench.features.spectrum import spectral_slope


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [333, 512, 640])
def test_slope_of_noise_with_a_known_one(exponent: int, side: int) -> None:
    rng = np.random.default_rng(exponent)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * frequency ** (-exponent / 2)
    noise = np.fft.irfft2(spectrum, s=(side, side))
    gray = np.clip(np.rint(128 + 40 * (noise - noise.mean()) / noise.std()), 0, 255).astype(np.uint8)
    assert spectral_slope(gray) == pytest.approx(-exponent, abs=0.1)


def test_brightness_and_contrast_do_not_matter() -> None:
    gray = np.random.default_rng(0).integers(0, 60, (200, 300)).astype(np.uint8)
    assert spectral_slope(2 * gray + 50) == pytest.approx(spectral_slope(gray), abs=1e-5)


def test_only_the_central_square_counts() -> None:
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 256, (500, 700), dtype=np.uint8)
    centre = (slice(58, 442), slice(158, 542))
    other = generator.integers(0, 256, (500, 700), dtype=np.uint8)
    other[centre] = gray[centre]
    assert spectral_slope(other) == spectral_slope(gray) == spectral_slope(gray[centre])


@pytest.mark.parametrize("gray", [np.zeros((100, 100)), np.full((500, 400), 255), np.arange(63 * 90).reshape(63, 90)])
def test_images_without_a_slope(gray: np.ndarray) -> None:
    assert math.isnan(spectral_slope(gray.astype(np.uint8)))
