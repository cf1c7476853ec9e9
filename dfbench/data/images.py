"""Image files: decode one the way the benchmark's own code does, or read its header; say why one cannot be used."""

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError

from dfbench.parallel import progress_bar
from dfbench.paths import result_csvs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif"),
        *(".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
    )
)
"""What counts as an image in a folder or an archive, in lower case; everything else is passed over."""

MAX_PIXELS = 89_478_485
"""Most pixels an image may claim: Pillow's own warning level. A bound on what a hostile header costs."""

MAX_IMAGE_BYTES = 3 * MAX_PIXELS
"""Most bytes an image file may have: the largest uncompressed RGB bitmap that is decoded, 256 MiB."""

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""Pillow's decoders that a hostile file may reach; EPS, for one, would start Ghostscript.

TIFF is not among them. Of a damaged one (CCITT group 4), libtiff's decoder returns memory that nobody wrote to, so the
pixels differ from run to run; DFBench has none.
"""

_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

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
    """`rgb`: mode RGB, alpha dropped, EXIF ignored, as upstream's `Image.open(path).convert("RGB")` does.

    Of 16-bit gray the high byte counts (`is_deep_gray`), where upstream's conversion turns all above 255 white.
    """

    rgb: Image.Image
    truncated: bool
    is_deep_gray: bool

    @property
    def warning(self) -> str:
        """With what reservation these are the file's pixels; empty for without any."""
        reservations = {
            "file is truncated; decoded as far as it goes": self.truncated,
            "has 16 bits a pixel; only the high byte counts": self.is_deep_gray,
        }
        return "; ".join(text for text, holds in reservations.items() if holds)


class ImageMetadata(NamedTuple):
    """What an image file's header tells, and the size of the file. format: Pillow's name of it, such as JPEG."""

    width: int
    height: int
    num_bytes: int
    format: str


def split_suffix(path: str) -> tuple[str, str]:
    """`os.path.splitext` for forward slashes, four times as fast."""
    dot = path.rfind(".")
    return (path[:dot], path[dot:]) if dot > path.rfind("/") + 1 else (path, "")


@contextmanager
def open_image_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(an image file, open for reading; its size in bytes).

    Raises ImageError if it is missing, unreadable, empty, larger than MAX_IMAGE_BYTES, or a pipe or a device, which may
    never end.
    """
    try:
        # Without waiting: a pipe is open at once, and found to be one.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("is no regular file")
            if status.st_size == 0:
                raise ImageError("file is empty")
            if status.st_size > MAX_IMAGE_BYTES:
                raise ImageError(f"has {status.st_size:,} bytes, more than {MAX_IMAGE_BYTES:,}")
            yield file, status.st_size
    except FileNotFoundError:
        raise ImageError("file is missing") from None
    except ValueError:
        raise ImageError("has a name that no file can have") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file. Raises ImageError as `open_image_file` does."""
    with open_image_file(path) as (file, num_bytes):
        return file.read(num_bytes)


@contextmanager
def open_image(file: BinaryIO) -> Iterator[Image.Image]:
    """An image whose header has been read, its pixels to be decoded inside the `with` block.

    Raises ImageError if it claims more than MAX_PIXELS, is a TIFF or has 32-bit pixels, and one of DECODER_ERRORS if it
    is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata would fill the terminal of a run
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            file.seek(0)
            if file.read(4) in _TIFF_BEGINNINGS:
                raise ImageError("is a TIFF, a format that is not read: save it as PNG") from None
            raise
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"claims {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            if image.mode in ("I", "F") and not is_deep_gray(image):
                raise ImageError(f"has 32-bit pixels (Pillow mode {image.mode}), which have no 0-255 scale")
            yield image


def is_deep_gray(image: Image.Image) -> bool:
    """Whether an opened image is 16-bit gray. That of a PGM comes as 32 bits, scaled to 0-65535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def high_byte(image: Image.Image) -> "np.ndarray":
    """16-bit gray as 8-bit gray, uint8 (H, W): its high byte, as OpenCV reads it. Pillow's conversion would clip."""
    import numpy as np  # not for the programs that only ask for a suffix

    return (np.asarray(image) >> 8).astype(np.uint8)


def read_header(path: Path) -> ImageMetadata:
    """Size, format and bytes of an image file, without decoding a pixel.

    Raises ImageError as `load_image` does, but a header does not tell whether the pixels behind it can be decoded.
    """
    with open_image_file(path) as (file, num_bytes):
        try:
            with open_image(file) as image:
                return ImageMetadata(image.width, image.height, num_bytes, image.format or "")
        except DECODER_ERRORS as error:
            raise ImageError(f"cannot be decoded: {decoder_reason(error)}") from None


def decoder_reason(error: Exception) -> str:
    """What a decoder complains of, in one line that is the same in every run."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"  # Pillow's own message has an address in it
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the file's name, which the caller has
    return " ".join(str(error).split()) or type(error).__name__


def load_image(path: Path, *, strict: bool = False) -> DecodedImage:
    """Read and decode an image file.

    A truncated file is decoded as far as it goes (the rest is gray), as upstream does; `strict` makes it an error.
    Raises ImageError if the file cannot be read (see `open_image_file`), is no image or one that is refused (see
    `open_image`), or cannot be decoded.
    """
    data = read_image_file(path)
    try:
        return _decode(data, truncated=False)
    except DECODER_ERRORS as error:
        reason = decoder_reason(error)
    if strict:
        raise ImageError(f"cannot be decoded whole: {reason}")
    try:
        return _decode(data, truncated=True)
    except DECODER_ERRORS:
        raise ImageError(f"cannot be decoded: {reason}") from None


def _decode(data: bytes, *, truncated: bool) -> DecodedImage:
    previous = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    try:
        with open_image(io.BytesIO(data)) as image:
            is_deep = is_deep_gray(image)
            rgb = Image.fromarray(high_byte(image)) if is_deep else image
            return DecodedImage(rgb.convert("RGB"), truncated, is_deep)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = previous


# ------------------------------------------------------------------------------------------------- metadata of many


METADATA = ("width", "height", "bytes", "format")
"""Columns of `read_metadata`, and of the CSVs of `feature_distribution.py`."""


def read_metadata(images: Sequence[str], image_root: Path, features_dir: Path | None, *, quiet: bool) -> "pd.DataFrame":
    """METADATA of every image, in the order given (index: image); NaN and "" of a file that is missing or no image.

    Taken from the feature CSVs in `features_dir` where they have it, from the files' headers otherwise.
    """
    import pandas as pd  # slow to load, and only the audit needs it

    tables = [_metadata_of_features(features_dir)] if features_dir and features_dir.is_dir() else []
    missing = [image for image in images if not tables or image not in tables[0].index]
    rows = [_header_or_nan(image_root / image) for image in progress_bar(missing, "reading headers", "images", quiet)]
    tables.append(pd.DataFrame(rows, index=pd.Index(missing, dtype=object), columns=list(METADATA)))
    types = {**dict.fromkeys(METADATA[:3], float), "format": object}
    found = pd.concat([table.astype(types) for table in tables if len(table)])
    return found.loc[list(images), list(METADATA)].fillna({"format": ""})


def _header_or_nan(path: Path) -> tuple[float, float, float, str]:
    try:
        return read_header(path)
    except ImageError:
        return float("nan"), float("nan"), float("nan"), ""


def _metadata_of_features(folder: Path) -> "pd.DataFrame":
    import pandas as pd

    tables = []
    for path in result_csvs(folder):
        try:
            table = pd.read_csv(path, usecols=["image", *METADATA], index_col="image", encoding="utf-8-sig")
            tables.append(table.astype(dict.fromkeys(METADATA[:3], float)))
        except ValueError:
            continue  # upstream's five columns only, or no numbers: the headers will say
    metadata = pd.concat(tables) if tables else pd.DataFrame()
    return metadata[~metadata.index.duplicated()]
