"""Decode one image the way the benchmark's own code does, and survive the ones that cannot be."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Most pixels an image may claim: Pillow's own warning level. A bound on what a hostile header costs."""

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow's decoders that a hostile file may reach; EPS, for one, would start Ghostscript."""

DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageError(Exception):
    """One image cannot be used; the message says why in a few words. The run goes on without it."""


@dataclass
class DecodedImage:
    """`rgb`: mode RGB, alpha dropped, EXIF ignored, as upstream's `Image.open(path).convert("RGB")` does."""

    rgb: Image.Image
    truncated: bool


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file. Raises ImageError if it is missing, unreadable or empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError("file is missing") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None
    if not data:
        raise ImageError("file is empty")
    return data


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) out of an image file's header. Raises one of DECODER_ERRORS where there is none."""
    with Image.open(path, formats=FORMATS) as image:
        return image.size


def decoder_reason(error: Exception) -> str:
    """What a decoder complains of, in one line that is the same in every run."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"  # Pillow's own message has an address in it
    return " ".join(str(error).split()) or type(error).__name__


def load_image(path: Path, *, strict: bool = False) -> DecodedImage:
    """Read and decode an image file.

    A truncated file is decoded as far as it goes (the rest is gray), as upstream does; `strict` makes it an error.
    Raises ImageError if the file is missing, is no image, claims more than MAX_PIXELS, or cannot be decoded.
    """
    data = read_image_file(path)
    try:
        return DecodedImage(_decode(data, truncated_too=False), truncated=False)
    except ImageError:
        raise
    except DECODER_ERRORS as error:
        reason = decoder_reason(error)
    if strict:
        raise ImageError(f"cannot be decoded whole: {reason}")
    try:
        return DecodedImage(_decode(data, truncated_too=True), truncated=True)
    except DECODER_ERRORS:
        raise ImageError(f"cannot be decoded: {reason}") from None


def _decode(data: bytes, *, truncated_too: bool) -> Image.Image:
    previous = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated_too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata would fill the terminal of a run
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"claims {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
                return image.convert("RGB")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = previous
