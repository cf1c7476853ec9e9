"""Slope of an image's power spectrum: how fast power falls with spatial frequency.

The least-squares slope of log power against log frequency, from 1/32 to 1/2 cycle a pixel. Power is that of the
mean-free, Hann-windowed central square of the gray image, at most 384 pixels wide, averaged over rings of integer
radius.

Photographs lie about -2 (Field, "Relations between the statistics of natural images and the response properties of
cortical cells", 1987); generators that enlarge their images show at the high end (Durall et al., arXiv:2003.01826).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import scipy.fft

SLOPE_WINDOW = 384
"""Pixels a side of the square that is transformed: few sources have images that are smaller."""

SLOPE_SMALLEST = 64
SLOPE_FREQUENCIES = (1 / 32, 1 / 2)

_NO_POWER = 1e-13
"""Share of the strongest coefficient's power below which a ring holds nothing but rounding."""


def spectral_slope(gray: np.ndarray) -> float:
    """Slope of log power against log frequency of a gray image, uint8 (H, W).

    NaN for an image under 64 pixels a side, and for one that is constant or strictly periodic: rings without power have
    no logarithm.
    """
    side = min(*gray.shape, SLOPE_WINDOW)
    if side < SLOPE_SMALLEST:
        return math.nan
    rings = _rings(side)
    top, left = (gray.shape[0] - side) // 2, (gray.shape[1] - side) // 2
    square = gray[top : top + side, left : left + side]
    mean = cv2.norm(square, cv2.NORM_L1) / square.size
    spectrum = scipy.fft.rfft2((square - np.float32(mean)) * rings.window)
    power = (spectrum.real**2 + spectrum.imag**2).ravel()
    means = np.add.reduceat((power * rings.share)[rings.order], rings.starts)
    if means.min() <= _NO_POWER * power.max():
        return math.nan
    return float(rings.fit @ np.log(means))


@dataclass(frozen=True, slots=True)
class _Rings:
    """What the slope needs to know of a square of N pixels a side, whose rfft2 has N * (N // 2 + 1) coefficients.

    window: Hann window, float32 (N, N). share: weight of each coefficient in the mean of its ring, float32. order: the
    coefficients of the rings fitted, ring by ring. starts: where each ring begins in it. fit: one weight a ring; its
    product with the log powers is the least-squares slope.
    """

    window: np.ndarray
    share: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    fit: np.ndarray


@lru_cache(maxsize=8)
def _rings(side: int) -> _Rings:
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(side) / side)
    rows, columns = np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)
    radius = np.rint(np.hypot(rows, columns)).astype(int).ravel()
    # rfft2 leaves out the mirrored half: its columns count twice, but for those that mirror onto themselves.
    count = np.broadcast_to(np.where((columns == 0) | (columns == side / 2), 1, 2), (side, columns.size)).ravel()
    fitted = np.arange(math.ceil(side * SLOPE_FREQUENCIES[0]), math.floor(side * SLOPE_FREQUENCIES[1]) + 1)
    order = np.argsort(radius, kind="stable")
    starts = np.searchsorted(radius[order], [*fitted, fitted[-1] + 1])
    log_frequency = np.log(fitted / side)
    centred = log_frequency - log_frequency.mean()
    return _Rings(
        window=np.outer(hann, hann).astype(np.float32),
        share=(count / np.bincount(radius, count)[radius]).astype(np.float32),
        order=order[starts[0] : starts[-1]],
        starts=starts[:-1] - starts[0],
        fit=centred / (centred @ centred),
    )
