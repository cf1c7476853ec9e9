"""The definitions in plain float64 NumPy and SciPy, and what the fast code makes of the same files."""

import io
import math
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy import ndimage

from dfbench.data.images import ImageError
from dfbench.features import compute as features
from dfbench.features.compute import format_row, measure_image, spectral_slope
from dfbench.features.schema import COLUMNS

TOLERANCE = 0.01


# ---------------------------------------------------------------------------------------------------------- reference


def reference(rgb: np.ndarray, alpha: np.ndarray | None = None) -> dict[str, float]:
    """The five features of RGB (H, W, 3) on the 0-255 scale, as the definitions read."""
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    visible = np.ones(red.shape, bool) if alpha is None else alpha > 0
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # OpenCV's gray: 0.299, 0.587 and 0.114 as 15-bit fractions, so that some 0.1 % of the colours round the other way.
    gray = np.floor((9798 * red + 19235 * green + 3735 * blue) / 2**15 + 0.5)
    rg, yb = np.abs(red - green), np.abs(0.5 * (red + green) - blue)
    return {
        "brightness": luma[visible].mean() if visible.any() else math.nan,
        "contrast": gray.std(),
        "colorfulness": math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean()),
        "si": reference_si(gray),
        "spectral_slope": reference_slope(gray),
    }


def reference_si(gray: np.ndarray) -> float:
    if min(gray.shape) < 3:
        return math.nan
    return np.hypot(ndimage.sobel(gray, axis=0), ndimage.sobel(gray, axis=1))[1:-1, 1:-1].std()


def reference_slope(gray: np.ndarray) -> float:
    """On the whole Fourier plane, ring by ring."""
    side = min(*gray.shape, 384)
    if side < 64:
        return math.nan
    top, left = (gray.shape[0] - side) // 2, (gray.shape[1] - side) // 2
    square = gray[top : top + side, left : left + side]
    hann = np.sin(np.pi * np.arange(side) / side) ** 2
    power = np.abs(np.fft.fft2((square - square.mean()) * hann * hann[:, None])) ** 2
    frequency = np.fft.fftfreq(side) * side
    radius = np.rint(np.hypot(frequency, frequency[:, None]))
    rings = [r for r in range(1, side) if 1 / 32 <= r / side <= 1 / 2]
    means = [power[radius == r].mean() for r in rings]
    if min(means) <= 1e-13 * power.max():
        return math.nan
    return np.polyfit(np.log(np.array(rings) / side), np.log(means), 1)[0]


def assert_close(path: Path, rgb: np.ndarray, alpha: np.ndarray | None = None) -> None:
    measured, expected = measure_image(path), reference(rgb, alpha)
    for name, value in expected.items():
        tolerance = 1e-5 if name == "spectral_slope" else TOLERANCE
        assert getattr(measured, name) == pytest.approx(value, abs=tolerance, nan_ok=True), name
    assert (measured.height, measured.width) == rgb.shape[:2]
    assert measured.num_bytes == path.stat().st_size


def photo(width: int = 300, height: int = 200) -> np.ndarray:
    """A real photograph, RGB uint8 (height, width, 3)."""
    return np.asarray(Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.LANCZOS))


# -------------------------------------------------------------------------------------------------- kinds of pixels


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".ppm", ".gif"])
def test_lossless_and_other_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(photo()).save(path)
    with Image.open(path) as image:
        assert_close(path, np.asarray(image.convert("RGB")))
        assert measure_image(path).format == image.format


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 75},
        {"quality": 95, "subsampling": 0},
        {"quality": 60, "subsampling": 1},
        {"quality": 90, "progressive": True},
        {"quality": 90, "keep_rgb": True},
        {"quality": 90, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ],
    ids=lambda options: "-".join(options),
)
def test_jpeg_pixels_are_those_of_pillow(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(photo(301, 203)).save(path, **options)
    with Image.open(path) as image:
        assert_close(path, np.asarray(image.convert("RGB")))


def test_jpeg_with_something_after_its_end(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(photo()).save(path)
    pixels = np.asarray(Image.open(path))
    path.write_bytes(path.read_bytes() + b"a camera's notes")
    assert_close(path, pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_gray(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(photo()).convert("L").save(path)
    assert_close(path, np.asarray(Image.open(path).convert("RGB")))
    assert measure_image(path).colorfulness == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_count_for_all_but_brightness(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((200, 300), np.uint8)
    alpha[50:120, 40:200] = 1  # hardly visible is visible
    alpha[90:120, 40:200] = 255
    image = Image.fromarray(photo()).convert("L" if mode == "LA" else "RGB")
    image.putalpha(Image.fromarray(alpha))
    path = tmp_path / "image.png"
    image.save(path)
    assert_close(path, np.asarray(image.convert("RGB")), alpha)


@pytest.mark.parametrize(
    "gray_of",
    [
        lambda rgb: np.asarray(Image.fromarray(rgb).convert("L")).astype(np.float64),
        lambda rgb: np.floor(rgb @ (0.299, 0.587, 0.114) + 0.5),
    ],
    ids=["Pillow", "float64"],
)
def test_other_roundings_of_gray_agree(gray_of) -> None:
    """Upstream takes OpenCV's gray for the contrast and Pillow's for SI; one gray serves both."""
    rgb = photo(512, 512)
    gray, expected = features.to_gray(rgb), gray_of(rgb)
    assert features.contrast(gray) == pytest.approx(expected.std(), abs=TOLERANCE)
    assert features.spatial_information(gray) == pytest.approx(reference_si(expected), abs=TOLERANCE)
    assert spectral_slope(gray) == pytest.approx(reference_slope(expected), abs=TOLERANCE)


def test_nothing_visible_has_no_brightness(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGBA", (80, 80), (200, 100, 50, 0)).save(path)
    row = dict(zip(COLUMNS, format_row("a.png", measure_image(path)), strict=True))
    assert row["brightness"] == ""
    assert row["contrast"] == row["si"] == "0.0000"


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(photo()).quantize(16).save(path, transparency=3)
    with Image.open(path) as image:
        rgba = np.asarray(image.convert("RGBA"))
    assert 0 < (rgba[..., 3] == 0).mean() < 1
    assert_close(path, rgba[..., :3], rgba[..., 3])


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    for name, mode in (("bits.png", "1"), ("print.jpg", "CMYK")):
        Image.fromarray(photo()).convert(mode).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.mode == mode
            assert_close(tmp_path / name, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".jp2"])
def test_sixteen_bits_gray_count_with_their_high_byte(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300))
    deep = (photo()[..., 0].astype(np.uint16) << 8) + noise.astype(np.uint16)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(deep).save(path)
    assert_close(path, np.repeat((deep // 256)[..., None], 3, axis=2))


def test_sixteen_bits_gray_with_a_transparent_value(tmp_path: Path) -> None:
    """Only that value is invisible, not others of its high byte."""
    deep = (photo()[..., 0].astype(np.uint16) << 8) + 7
    deep[:100, :150] = 60_000
    deep[100:, :150] = 60_001
    path = tmp_path / "image.png"
    Image.fromarray(deep).save(path, transparency=60_000)
    alpha = (deep != 60_000).astype(np.uint8)
    assert 0.2 < (alpha == 0).mean() < 0.3
    assert_close(path, np.repeat((deep // 256)[..., None], 3, axis=2), alpha)


@pytest.mark.parametrize("largest", [65535, 1023])
def test_sixteen_bits_gray_as_pgm(tmp_path: Path, largest: int) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (80, 90))
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P5 90 80 %d\n" % largest + values.astype(">u2").tobytes())
    assert_close(path, np.repeat((values * 65535 // largest // 256)[..., None], 3, axis=2))
    assert measure_image(path).format == "PPM"


def test_sixteen_bits_colour_as_ppm_are_rounded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (80, 90, 3))
    path = tmp_path / "image.ppm"
    path.write_bytes(b"P6 90 80 65535\n" + values.astype(">u2").tobytes())
    assert_close(path, np.floor(values / 65535 * 255 + 0.5))


def test_sixteen_bits_colour(tmp_path: Path) -> None:
    deep = photo().astype(np.uint16) * 257
    path = tmp_path / "image.png"
    assert cv2.imwrite(str(path), deep[..., ::-1])
    assert_close(path, photo())


def test_an_animation_counts_with_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "image.gif"
    frames = [Image.fromarray(photo()), Image.new("RGB", (300, 200), "white")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert_close(path, np.asarray(Image.open(path).convert("RGB")))


# ------------------------------------------------------------------------------------------------- sizes and extremes


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2), (3, 3), (1, 500), (4, 3), (63, 80), (64, 64), (97, 101)])
def test_small_images(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(photo(*size)).save(path)
    assert_close(path, photo(*size))
    measured = measure_image(path)
    assert math.isnan(measured.si) == (min(size) < 3)
    assert math.isnan(measured.spectral_slope) == (min(size) < 64)


def test_one_pixel_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (1, 1), (100, 200, 50)).save(path)
    # 0.2126 * 100 + 0.7152 * 200 + 0.0722 * 50 = 21.26 + 143.04 + 3.61 = 167.91; no deviation of a single pixel;
    # |R - G| = 100, |(R + G) / 2 - B| = 100: 0.3 * sqrt(100^2 + 100^2) = 42.4264; no inside, no spectrum.
    size = str(path.stat().st_size)
    assert format_row("a/b.png", measure_image(path)) == (
        *("a/b.png", "167.9100", "0.0000", "42.4264", ""),
        *("1", "1", "PNG", size, ""),
    )


def test_large_image_is_measured_in_several_bands(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(photo(1500, 1601)).save(path, quality=92)
    assert len(features._bands(1601, 1500)) == 5
    assert_close(path, np.asarray(Image.open(path)))


def extremes() -> dict[str, np.ndarray]:
    """Images that break approximations: saturated noise, fine checks, and a gradient of one irrational magnitude."""
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:300, :300]
    stripes = ((row + column) // 2 % 2 * 255).astype(np.uint8)
    checks = ((row + column) % 2 * 255).astype(np.uint8)
    return {
        "noise": rng.integers(0, 256, (300, 300, 3), dtype=np.uint8),
        "saturated": rng.integers(0, 2, (300, 300, 3), dtype=np.uint8) * 255,
        "stripes": np.dstack([stripes] * 3),
        "checks": np.dstack([checks, checks, 255 - checks]),
        "blue": np.full((300, 300, 3), (0, 0, 255), np.uint8),
    }


@pytest.mark.parametrize("name", extremes())
def test_extremes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.png"
    rgb = extremes()[name]
    Image.fromarray(rgb).save(path)
    assert_close(path, rgb)
    periodic = name in ("stripes", "checks", "blue")  # rings without power
    assert math.isnan(measure_image(path).spectral_slope) == periodic


# --------------------------------------------------------------------------------------------------------- bad files


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 4) + b"IDAT"


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing"),
        (b"", "empty"),
        (b"some text", "^cannot be decoded: no image of a known format$"),
        (encoded("JPEG")[:5000], "truncated"),
        (encoded("JPEG")[:-30], "truncated"),
        (encoded("PNG")[:5000], "cannot be decoded"),
        (encoded("JPEG")[:100], "cannot be decoded"),
        (encoded("EPS"), "no image of a known format"),
        (png_header(9500, 9500), "9500x9500"),
        (png_header(100_000, 100_000), "decompression bomb"),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "half a JPEG",
        "nearly a JPEG",
        "half a PNG",
        "a JPEG's head",
        "EPS",
        "large",
        "huge",
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files(tmp_path: Path, content: bytes | None, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        measure_image(path)
    assert capfd.readouterr().err == ""  # nothing across the progress bar


def test_a_folder_and_floating_point_pixels(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        measure_image(tmp_path)
    path = tmp_path / "image.ppm"
    path.write_bytes(b"Pf\n4 4\n-1.0\n" + np.ones(16, "<f4").tobytes())
    with pytest.raises(ImageError, match="32-bit"):
        measure_image(path)


# ------------------------------------------------------------------------------------------------------ spectral slope


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


def test_every_side_has_the_slope_of_the_whole_spectrum() -> None:
    """With much power in the highest horizontal frequency, whose column mirrors onto itself where the side is even."""
    rng = np.random.default_rng(0)
    wrong = {}
    for side in range(32, 401):
        gray = (rng.integers(0, 128, (side, side)) + 120 * (np.arange(side) % 2)).astype(np.uint8)
        found, expected = spectral_slope(gray), reference_slope(gray.astype(float))
        if found != pytest.approx(expected, abs=1e-5, nan_ok=True):
            wrong[side] = found - expected
    assert wrong == {}


@pytest.mark.parametrize("gray", [np.zeros((100, 100)), np.full((500, 400), 255), np.arange(63 * 90).reshape(63, 90)])
def test_images_without_a_slope(gray: np.ndarray) -> None:
    assert math.isnan(spectral_slope(gray.astype(np.uint8)))
