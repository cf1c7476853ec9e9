"""Rows that are fit for training: annotations that can be read, labels, images that can be decoded.

At an image that it cannot decode, ms-swift ends in the middle of an epoch without saying which one it was (or, without
`--strict true`, puts a random other row in its place). So every image is looked at beforehand.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from pathlib import Path

from dfbench.data.annotations import Sample, check_annotations
from dfbench.data.images import ImageError, load_image, read_header
from dfbench.errors import InputError
from dfbench.parallel import progress_bar

_SHOWN = 20
_CHUNK = 4096
_THREADS = 16


def checked_samples(path: Path, image_root: Path, decode: bool = False, max_aspect_ratio: float = inf) -> list[Sample]:
    """Samples of an annotation file, every row of which is fit for training. Repeated rows are dropped.

    Bad rows (see `check_annotations`), rows without a label and images that cannot be used (see `image_problems`) are
    listed on stderr, and InputError says how many. Truncated images, where they are noticed, are listed too, but stay:
    training uses them as far as they can be decoded, and so does scoring.
    """
    rows, problems = check_annotations(path)
    bad = [str(problem) for problem in problems]
    bad += [f"{place}: image {row.image}: no answer; training needs A or B" for place, row in rows if not row.label]
    truncated = []
    paths = [image_root / sample.image for _, sample in rows]
    for index, reason, usable in image_problems(paths, decode, max_aspect_ratio):
        place, sample = rows[index]
        (truncated if usable else bad).append(f"{place}: image {sample.image}: {reason} ({paths[index]})")
    if truncated:
        total = f"{path}: {len(truncated)} images are truncated; they are used as far as they go"
        print(*(f"warning: {line}" for line in [*truncated[:_SHOWN], total]), sep="\n", file=sys.stderr)
    if bad:
        print(*bad[:_SHOWN], sep="\n", file=sys.stderr)
        further = "" if decode else " --decode_images looks beyond the images' headers."
        raise InputError(
            f"{path}: {len(bad)} rows cannot be trained on (the first {min(len(bad), _SHOWN)} are listed above). "
            f"Correct or remove them, or set IMAGE_ROOT.{further}"
        )
    return [sample for _, sample in rows]


def image_problems(paths: Sequence[Path], decode: bool, max_aspect_ratio: float) -> Iterator[tuple[int, str, bool]]:
    """(index of an image, what is wrong with it, whether it can be used all the same, being truncated).

    All are looked at in threads, with a progress bar: at their headers, or with `decode` at the whole of them. An image
    cannot be used if it is missing, `load_image` cannot decode it, it claims more than MAX_PIXELS, or its longer side
    is more than `max_aspect_ratio` times the shorter one. A header does not tell whether a file is truncated.
    """
    looks_good = partial(_looks_good, decode=decode, max_aspect_ratio=max_aspect_ratio)
    bar = progress_bar(None, "decoding images" if decode else "image headers", "img", quiet=False, total=len(paths))
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool, bar:
        warnings.simplefilter("ignore")  # Pillow's, as in images.py
        for start in range(0, len(paths), _CHUNK):
            suspects = []
            for index, good in enumerate(pool.map(looks_good, paths[start : start + _CHUNK]), start):
                bar.update()
                if not good:
                    suspects.append(index)
            # Decoding as far as it goes is a switch of Pillow's for all threads: only when the others are done.
            for index in suspects:
                try:
                    image = load_image(paths[index])
                except ImageError as error:
                    yield index, str(error), False
                    continue
                width, height = image.rgb.size
                if max(width, height) > max_aspect_ratio * min(width, height):
                    yield index, f"{width}x{height} pixels, more than {max_aspect_ratio:g} times as long as wide", False
                elif image.truncated:
                    yield index, "truncated", True


def _looks_good(path: Path, *, decode: bool, max_aspect_ratio: float) -> bool:
    try:
        if decode:
            width, height = load_image(path, strict=True).rgb.size
        else:
            width, height, *_ = read_header(path)
    except ImageError:
        return False
    return max(width, height) <= max_aspect_ratio * min(width, height)
