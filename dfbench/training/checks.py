"""Rows that are fit for training: annotations that can be read, labels, images that can be decoded.

At an image that it cannot decode, ms-swift ends in the middle of an epoch without saying which one it was (or, without
`--strict true`, puts a random other row in its place). So every image is looked at beforehand.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dfbench.data.annotations import Sample, check_annotations
from dfbench.data.images import ImageError, load_image, read_header
from dfbench.errors import InputError
from dfbench.parallel import progress_bar

QWEN_MAX_RATIO = 200
"""Qwen2.5-VL refuses images whose longer side is more than this many times the shorter one (`smart_resize`)."""

_NO_ANSWER = "no answer; training needs A or B"
_SHOWN = 20
_CHUNK = 4096
_THREADS = 16


def checked_samples(
    path: Path, image_root: Path, *, decode: bool = False, max_ratio: float | None = None
) -> list[Sample]:
    """Samples of an annotation file, every row of which is fit for training. Repeated rows are dropped.

    Bad rows (see `check_annotations`), rows without a label and images that cannot be used (see `image_problems`) are
    listed on stderr, and InputError says how many. Truncated images, where they are noticed, are listed too, but stay:
    training uses them as far as they can be decoded, and so does scoring.
    """
    rows, problems = check_annotations(path)
    bad = [str(problem) for problem in problems]
    bad += [f"{where}: image {sample.image}: {_NO_ANSWER}" for where, sample in rows if not sample.label]
    truncated = []
    paths = [image_root / sample.image for _, sample in rows]
    for i, reason, usable in image_problems(paths, decode=decode, max_ratio=max_ratio):
        where, sample = rows[i]
        (truncated if usable else bad).append(f"{where}: image {sample.image}: {reason} ({paths[i]})")
    if truncated:
        _show(f"warning: {line}" for line in truncated[:_SHOWN])
        _show([f"warning: {path}: {len(truncated)} images are truncated; they are used as far as they go"])
    if bad:
        _show(bad[:_SHOWN])
        raise _cannot_train(path, len(bad), decode)
    return [sample for _, sample in rows]


def _cannot_train(path: Path, count: int, decoded: bool) -> InputError:
    further = "" if decoded else "; --decode_images looks beyond the images' headers"
    return InputError(
        path,
        found=f"{count} rows that cannot be trained on (the first {min(count, _SHOWN)} above)",
        expected="readable rows, labels A or B, images that can be decoded",
        remedy=f"correct or remove these rows, or set IMAGE_ROOT{further}",
    )


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


class ImageProblem(NamedTuple):
    """What is wrong with the image at `index`; one that is truncated is usable all the same."""

    index: int
    reason: str
    usable: bool


def image_problems(paths: Sequence[Path], *, decode: bool, max_ratio: float | None) -> Iterator[ImageProblem]:
    """Look at all images in threads, with a progress bar: at their headers, or with `decode` at the whole of them.

    An image cannot be used if it is missing, `load_image` cannot decode it, it claims more than MAX_PIXELS, or its
    longer side is more than `max_ratio` times the shorter one. A header does not tell whether a file is truncated.
    """
    looks_good = partial(_looks_good, decode=decode, max_ratio=max_ratio)
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
                if problem := _problem(paths[index], max_ratio):
                    yield ImageProblem(index, *problem)


def _looks_good(path: Path, *, decode: bool, max_ratio: float | None) -> bool:
    try:
        if decode:
            width, height = load_image(path, strict=True).rgb.size
        else:
            width, height, *_ = read_header(path)
    except ImageError:
        return False
    return not _too_long(width, height, max_ratio)


def _problem(path: Path, max_ratio: float | None) -> tuple[str, bool] | None:
    """(what is wrong, whether the image is usable); None where only the header looked odd."""
    try:
        image = load_image(path)
    except ImageError as error:
        return str(error), False
    width, height = image.rgb.size
    if _too_long(width, height, max_ratio):
        return f"{width}x{height} pixels, more than {max_ratio:g} times as long as wide", False
    return ("truncated", True) if image.truncated else None


def _too_long(width: int, height: int, max_ratio: float | None) -> bool:
    return max_ratio is not None and max(width, height) > max_ratio * min(width, height)
