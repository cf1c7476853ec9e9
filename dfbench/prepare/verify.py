"""Whether the images on the disk are images, by header or pixel by pixel; extract again what is damaged."""

import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dfbench.data.images import DECODER_ERRORS, MAX_PIXELS, ImageError, load_image, read_size
from dfbench.parallel import progress_bar, run_jobs
from dfbench.prepare.extract import JOB_IMAGES, ImageInventory, extract_missing
from dfbench.prepare.report import Reason


class _Check(NamedTuple):
    image_root: Path
    images: list[str]
    decode: bool


def check_images(
    stock: ImageInventory, wanted: Collection[str], image_root: Path, *, decode: bool, num_workers: int, quiet: bool
) -> list[str]:
    """Open the wanted images that are on the disk; what is no image becomes a fault. Returns those that lack their end.

    Headers only, which takes 0.1 ms an image; with `decode` every pixel.
    """
    images = sorted(image for image in wanted if image in stock.on_disk)
    pieces = [images[start : start + JOB_IMAGES] for start in range(0, len(images), JOB_IMAGES)]
    jobs = [_Check(image_root, piece, decode) for piece in pieces]
    truncated: list[str] = []
    with progress_bar(None, "decoding" if decode else "checking", "images", quiet, total=len(images)) as bar:
        for job, results in run_jobs(_check, jobs, num_workers):
            for image, (trouble, is_truncated) in zip(job.images, results, strict=True):
                if trouble:
                    stock.on_disk.remove(image)
                    stock.faults[image] = (Reason.UNDECODABLE, trouble)
                if is_truncated:
                    truncated.append(image)
            bar.update(len(job.images))
    return sorted(truncated)


def repair_images(
    stock: ImageInventory, suspects: Collection[str], image_root: Path, *, num_workers: int, quiet: bool
) -> set[str]:
    """Extract those suspects again whose archive has other bytes than the disk. Returns them; none is checked again.

    Updates the stock, as `extract_missing` does. An image that is as bad in its archive is left as it is.
    """
    spares = {image: stock.spares[image] for image in sorted(suspects) if image in stock.spares}
    damaged = {image: spare for image, spare in spares.items() if _crc(image_root / image) != spare.crc}
    if not damaged:
        return set()
    for image in damaged:
        stock.on_disk.discard(image)
        stock.faults.pop(image, None)
    stock.members |= damaged
    extract_missing(stock, damaged, image_root, num_workers=num_workers, quiet=quiet)
    return set(damaged)


def _crc(path: Path) -> int | None:
    """CRC-32 of a file, or None where it cannot be read. Its size is a member's, so it is not long."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


def _check(job: _Check) -> list[tuple[str, bool]]:
    return [check_image(Path(job.image_root, image), decode=job.decode) for image in job.images]


def check_image(path: Path, *, decode: bool) -> tuple[str, bool]:
    """(what is wrong with an image file or "", whether its end is missing). The latter needs `decode`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the bound is ours, below and in load_image
            if decode:
                return "", load_image(path).truncated
            width, height = read_size(path)
    except ImageError as error:
        return str(error), False
    except DECODER_ERRORS as error:
        return f"cannot be opened: {' '.join(str(error).replace(str(path), 'file').split())}", False
    return (f"claims {width}x{height} pixels" if width * height > MAX_PIXELS else ""), False
