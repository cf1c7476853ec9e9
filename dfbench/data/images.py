"""Image files: decode one the way the benchmark's own code does, or read its header; say why one cannot be used."""

import io
import os
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
    import pandas as pd

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
        *(".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
    )
)
"""What counts as an image in a folder or an archive, in lower case; everything else is passed over."""

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


@contextmanager
def open_image(file: BinaryIO) -> Iterator[Image.Image]:
    """An image whose header has been read, its pixels to be decoded inside the `with` block.

    Raises ImageError if it claims more than MAX_PIXELS, and one of DECODER_ERRORS if it is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata would fill the terminal of a run
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"claims {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            yield image


def read_header(path: Path) -> ImageMetadata:
    """Size, format and bytes of an image file, without decoding a pixel.

    Raises ImageError if it is missing, is no image or claims more than MAX_PIXELS. A header does not tell whether the
    pixels behind it can be decoded.
    """
    try:
        with path.open("rb") as file, open_image(file) as image:
            return ImageMetadata(image.width, image.height, os.fstat(file.fileno()).st_size, image.format or "")
    except DECODER_ERRORS as error:
        raise ImageError(f"cannot be opened: {decoder_reason(error)}") from None


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
    Raises ImageError if the file is missing, is no image, claims more than MAX_PIXELS, or cannot be decoded.
    """
    data = read_image_file(path)
    try:
        return DecodedImage(_decode(data, truncated_too=False), truncated=False)
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
        with open_image(io.BytesIO(data)) as image:
            return image.convert("RGB")
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
