"""Features of one image file: brightness, contrast, colorfulness, spatial information and spectral slope.

Definitions, on the 0-255 scale of 8-bit RGB pixels as Pillow decodes them. Of an animation the first frame counts; CMYK
goes through Pillow's conversion; EXIF orientation is ignored. Of 16-bit pixels the high byte counts, with two
exceptions that are Pillow's: it rounds the colours of a 16-bit PPM to 8 bits, and takes a 16-bit RGB PNG for opaque
where a single colour is declared transparent.

- brightness: mean of 0.2126 R + 0.7152 G + 0.0722 B (Rec. 709 luma) over the pixels with alpha > 0.
- contrast: standard deviation of the gray image.
- colorfulness: s + 0.3 m, where s is the Euclidean norm of the standard deviations, and m that of the means, of
  |R - G| and |(R + G) / 2 - B| (Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003; with absolute
  values as in upstream, which the original does not take).
- si: standard deviation of the Sobel gradient's magnitude on the gray image, one-pixel border left out (spatial
  information, ITU-T P.910).
- spectral_slope: how fast power falls with spatial frequency; not in upstream. The least-squares slope of log power
  against log frequency, from 1/32 to 1/2 cycle a pixel, where power is that of the mean-free, Hann-windowed central
  square of the gray image, at most 384 pixels wide, averaged over rings of integer radius. Photographs lie about -2
  (Field, "Relations between the statistics of natural images and the response properties of cortical cells", 1987);
  generators that enlarge their images show at the high end (Durall et al., arXiv:2003.01826).

Gray is 0.299 R + 0.587 G + 0.114 B (Rec. 601 luma) rounded to 8 bits, the gray of OpenCV (upstream: OpenCV's for the
contrast, Pillow's for SI; they round one colour in a thousand differently). All but brightness look at every pixel,
transparent ones with their stored colour, as upstream does.

ITU-T P.910's temporal information is left out: it compares consecutive frames. Upstream subtracts a constant gray frame
instead, which makes it the contrast once more.
"""

import io
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import scipy.fft
from PIL import Image

from dfbench.data.images import (
    DECODER_ERRORS,
    ImageError,
    decoder_reason,
    high_byte,
    is_deep_gray,
    open_image,
    read_image_file,
)

_BRIGHTNESS_WEIGHTS = (0.2126, 0.7152, 0.0722)
_BAND_PIXELS = 1 << 19
_JPEG_END = b"\xff\xd9"

_SLOPE_WINDOW = 384
"""Pixels a side of the square that is transformed: few sources have images that are smaller."""

_SLOPE_SMALLEST = 64
_SLOPE_FREQUENCIES = (1 / 32, 1 / 2)

_NO_POWER = 1e-13
"""Share of the strongest coefficient's power below which a ring holds nothing but rounding."""


class ImageFeatures(NamedTuple):
    """What is known of one image file, in the order of `schema.COLUMNS`.

    brightness, contrast, colorfulness, si: on the 0-255 scale (si may exceed it), NaN where undefined: the brightness
        of an image without a visible pixel, the si of one narrower or lower than 3 pixels.
    spectral_slope: dimensionless; NaN for an image under 64 pixels a side, or with a ring of frequencies without any
        power (a constant or strictly periodic image).
    width, height: pixels as stored. format: Pillow's name (JPEG, PNG ...). num_bytes: size of the file.
    """

    brightness: float
    contrast: float
    colorfulness: float
    si: float
    width: int
    height: int
    format: str
    num_bytes: int
    spectral_slope: float


def measure_image(path: Path) -> ImageFeatures:
    """Read, decode and measure one image file.

    Raises ImageError as `images.load_image` does, and if it is truncated: such an image is not measured as far as it
    goes, for the missing part would count as flat gray.
    """
    data = read_image_file(path)
    try:
        with open_image(io.BytesIO(data)) as image:
            size, image_format = image.size, image.format
            rgb, alpha = _decode(image, data)
    except DECODER_ERRORS as error:
        raise ImageError(f"cannot be decoded: {decoder_reason(error)}") from None
    gray = to_gray(rgb)
    brightness, colorfulness = colour_features(rgb, alpha)
    values = brightness, contrast(gray), colorfulness, spatial_information(gray)
    return ImageFeatures(*values, *size, image_format, len(data), spectral_slope(gray))


def format_row(image: str, features: ImageFeatures) -> tuple[str, ...]:
    """The CSV row of an image, in the order of `schema.COLUMNS`: features with four decimals, NaN as an empty cell."""
    return (image, *map(_cell, features))


def _cell(value: float | int | str) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


# --------------------------------------------------------------------------------------------------------------- pixels


def _decode(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """(RGB uint8 (H, W, 3), alpha uint8 (H, W) or None for an opaque image) of an opened image and its file's bytes."""
    # OpenCV bundles Pillow's libjpeg-turbo and gives the same pixels without Pillow's copies. Older versions of it fill
    # up a file that ends early, though, so whatever does not end like a JPEG is left to Pillow, which refuses it.
    if image.format == "JPEG" and image.mode in ("L", "RGB") and data.endswith(_JPEG_END):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if rgb is not None:
            return rgb, None
    if is_deep_gray(image):
        return _decode_deep_gray(image)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
    return np.asarray(image.convert("RGB")), None


def _decode_deep_gray(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """As `_decode`, of 16-bit gray, in which one value may be declared transparent."""
    rgb = cv2.cvtColor(high_byte(image), cv2.COLOR_GRAY2RGB)
    transparent = image.info.get("transparency")
    return rgb, None if transparent is None else (np.asarray(image) != transparent).astype(np.uint8)


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Gray image uint8 (H, W) of RGB uint8 (H, W, 3)."""
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _bands(height: int, width: int) -> list[slice]:
    """Rows of an image in bands of half a million pixels: intermediate arrays stay small, and in the cache."""
    rows = max(1, _BAND_PIXELS // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


# ------------------------------------------------------------------------------------------------------------- features
#
# Sums run in OpenCV's vectorised norms: NORM_L1 is the sum of absolute values (or differences), NORM_L2SQR that of
# squares. On integers they are exact, so the only rounding is the division at the end.


def colour_features(rgb: np.ndarray, alpha: np.ndarray | None = None) -> tuple[float, float]:
    """(brightness, colorfulness) of RGB uint8 (H, W, 3), both on the 0-255 scale.

    Brightness is the mean over the pixels whose alpha (uint8 (H, W), None for an opaque image) is above 0, and NaN
    where there is none (upstream: 0). Colorfulness looks at all pixels; it is 0 for a gray image.
    """
    sums = np.sum([_colour_sums(rgb[rows]) for rows in _bands(*rgb.shape[:2])], axis=0)
    num_pixels = rgb.size // 3
    rg_sum, rg_squares, yb_sum, yb_squares = sums[3:]
    means = sums[:3] / num_pixels
    if alpha is not None:
        means = np.array(cv2.mean(rgb, mask=alpha)[:3]) if alpha.any() else np.full(3, math.nan)
    deviation = math.hypot(
        _standard_deviation(rg_sum, rg_squares, num_pixels), _standard_deviation(yb_sum, yb_squares, num_pixels) / 2
    )
    colorfulness = deviation + 0.3 * math.hypot(rg_sum, yb_sum / 2) / num_pixels
    return float(means @ _BRIGHTNESS_WEIGHTS), colorfulness


def _colour_sums(rgb: np.ndarray) -> tuple[float, ...]:
    """Sums over the pixels: R, G, B, |R - G|, its square, |R + G - 2 B| and its square."""
    red, green, blue = cv2.split(rgb)
    rg = cv2.norm(red, green, cv2.NORM_L1)
    rg_squares = cv2.norm(red, green, cv2.NORM_L2SQR)
    # With a = R - B and b = G - B, everything stays in 8 bits, where these sums are ten times faster than in 16:
    # |a + b| = 2 max(|a|, |b|) - |a - b| and (a + b)^2 = 2 a^2 + 2 b^2 - (a - b)^2, where a - b = R - G.
    larger = cv2.norm(cv2.max(cv2.absdiff(red, blue), cv2.absdiff(green, blue)), cv2.NORM_L1)
    squares = cv2.norm(red, blue, cv2.NORM_L2SQR) + cv2.norm(green, blue, cv2.NORM_L2SQR)
    plain = (cv2.norm(channel, cv2.NORM_L1) for channel in (red, green, blue))
    return *plain, rg, rg_squares, 2 * larger - rg, 2 * squares - rg_squares


def contrast(gray: np.ndarray) -> float:
    """Standard deviation (0-127.5) of a gray image, uint8 (H, W)."""
    return _standard_deviation(cv2.norm(gray, cv2.NORM_L1), cv2.norm(gray, cv2.NORM_L2SQR), gray.size)


def spatial_information(gray: np.ndarray) -> float:
    """Standard deviation of the Sobel magnitude (0-1443 at most) inside the border of a gray image, uint8 (H, W).

    NaN for an image that has no inside (under 3 pixels wide or high).
    """
    height, width = gray.shape
    if height < 3 or width < 3:
        return math.nan
    total = squares = 0.0
    for inside in _bands(height - 2, width):
        across, down = cv2.spatialGradient(gray[inside.start : inside.stop + 2])
        across, down = across[1:-1, 1:-1].astype(np.float32), down[1:-1, 1:-1].astype(np.float32)
        across *= across
        down *= down
        across += down  # at most 2 * 1020^2 < 2^24: still exact
        magnitude = cv2.sqrt(across, across)
        total += cv2.norm(magnitude, cv2.NORM_L1)
        squares += cv2.norm(magnitude, cv2.NORM_L2SQR)
    return _standard_deviation(total, squares, (height - 2) * (width - 2))


def _standard_deviation(total: float, squares: float, count: int) -> float:
    mean = total / count
    return math.sqrt(max(0.0, squares / count - mean * mean))


# ------------------------------------------------------------------------------------------------------- spectral slope


def spectral_slope(gray: np.ndarray) -> float:
    """Slope of log power against log frequency of a gray image, uint8 (H, W).

    NaN for an image under 64 pixels a side, and for one that is constant or strictly periodic: rings without power have
    no logarithm.
    """
    side = min(*gray.shape, _SLOPE_WINDOW)
    if side < _SLOPE_SMALLEST:
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


class _Rings(NamedTuple):
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
    rows, columns = np.arange(side)[:, None], np.arange(side // 2 + 1)
    radius = np.rint(np.hypot(np.minimum(rows, side - rows), columns)).astype(int).ravel()
    # rfft2 leaves out the mirrored half: its columns count twice, but for those that mirror onto themselves.
    count = np.broadcast_to(np.where((columns == 0) | (2 * columns == side), 1, 2), (side, columns.size)).ravel()
    fitted = np.arange(math.ceil(side * _SLOPE_FREQUENCIES[0]), math.floor(side * _SLOPE_FREQUENCIES[1]) + 1)
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
