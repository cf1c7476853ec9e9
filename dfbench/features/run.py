"""Measure the images of whole sources on all cores: one CSV a source, resumable, bad images listed beside it.

`<source>.csv` has the columns of `dfbench.features.schema`, one row an image in the order of their paths;
`<source>.errors.csv` (`image,error`) lists those that cannot be measured; `<source>.json` says what measured them.
Until a source is finished, its new rows lie in a part beside the CSV, from which a killed run goes on: see
`dfbench.predictions.writer`.

What a CSV holds is not measured again, even where the run has more images than the last one; errors are tried again.
"""

import ctypes
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path, PurePosixPath

import cv2
from tqdm import tqdm

from dfbench.data.discovery import Images, printable
from dfbench.data.images import ImageError
from dfbench.features.compute import format_row, measure_image
from dfbench.features.schema import COLUMNS
from dfbench.io import write_json
from dfbench.parallel import progress_bar, run_jobs
from dfbench.predictions.schema import errors_path, info_path, read_info
from dfbench.predictions.writer import (
    RecordWriter,
    check_known,
    consolidate,
    only_run,
    part_path,
    read_tables,
    remove_errors,
    remove_results,
)
from dfbench.provenance import describe_software

BATCH_SIZE = 8
"""Images that a worker measures before they are written: what a killed run loses, for each worker."""

_Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """num_measured, num_errors: images of this run's sources with and without a row, those of earlier runs included.

    num_new: images looked at by this run, in `seconds`. errors: the errors CSVs that it wrote.
    """

    num_measured: int
    num_errors: int
    num_new: int
    seconds: float
    errors: Sequence[Path]


@dataclass(frozen=True)
class _Job:
    source: str
    images: tuple[str, ...]


_Results = Iterable[tuple[_Job, tuple[_Rows, _Rows]]]
"""Jobs, and the CSV rows and (image, error) pairs of each."""


def measure_sources(
    images: Images, image_root: Path, output_dir: Path, *, workers: int, overwrite: bool = False, quiet: bool = False
) -> Outcome:
    """Measure all images that `output_dir` does not hold yet, and write the files of each source.

    Raises InputError where a CSV holds images that are not of this run or has other columns, where another run is
    writing to it, where it cannot be written, and where a worker process is killed.
    """
    started = time.monotonic()
    csv_paths = {source: output_dir / f"{source}.csv" for source in images}
    for csv_path in csv_paths.values():
        with only_run(csv_path):  # where another run has one of them, nothing is touched
            pass
    missing = {source: _missing(csv_paths[source], keys, overwrite) for source, keys in images.items()}
    jobs = [
        _Job(source, tuple(keys[start : start + BATCH_SIZE]))
        for source, keys in missing.items()
        for start in range(0, len(keys), BATCH_SIZE)
    ]
    num_images, num_new = sum(map(len, images.values())), sum(map(len, missing.values()))
    num_errors = dict.fromkeys(images, 0)
    with progress_bar(None, "measuring", "images", quiet, num_images, num_images - num_new) as bar:
        for source in (source for source in images if not missing[source]):
            _write_source(csv_paths[source], images[source], image_root, [], bar)
        results = run_jobs(partial(measure_batch, image_root), jobs, workers, in_order=True)
        for source, group in groupby(results, key=lambda result: result[0].source):
            num_errors[source] = _write_source(csv_paths[source], images[source], image_root, group, bar)
    total = sum(num_errors.values())
    listed = [errors_path(csv_paths[source]) for source in images if num_errors[source]]
    return Outcome(num_images - total, total, num_new, time.monotonic() - started, listed)


def _missing(csv_path: Path, images: Sequence[str], overwrite: bool) -> list[str]:
    """The images that the CSV and its parts have no row of."""
    with only_run(csv_path):  # another run would bring in the parts, and remove them, while they are read
        if overwrite:
            remove_results(csv_path)
        measured, _, _ = read_tables(csv_path, COLUMNS)
    check_known(csv_path, measured, map(printable, images))
    return [image for image in images if printable(image) not in measured]


def _write_source(csv_path: Path, images: Sequence[str], image_root: Path, results: _Results, bar: tqdm) -> int:
    """Append results as they come, and bring the files of a source into the order of its images at the end.

    A CSV that holds just these rows already stays as it is. Returns the number of images that cannot be measured.
    """
    batches = [[printable(image)] for image in images]
    num_errors = num_new = 0
    with only_run(csv_path):
        remove_errors(csv_path)
        consolidate(csv_path, batches, columns=COLUMNS)
        with RecordWriter(part_path(csv_path, 0), COLUMNS) as writer:
            for job, (rows, errors) in results:
                writer.write(rows, errors)
                num_errors += len(errors)
                num_new += len(job.images)
                bar.update(len(job.images))
        consolidate(csv_path, batches, columns=COLUMNS)
        counts = {"num_images": len(images) - num_errors, "num_errors": num_errors}
        if num_new or not counts.items() <= read_info(csv_path).items():
            software = describe_software(("opencv-python-headless", "pillow", "numpy", "scipy"))
            content = {"source": csv_path.stem, **counts, "image_root": str(image_root), **software}
            write_json(info_path(csv_path), content)
    return num_errors


# --------------------------------------------------------------------------------------------------- in the workers


def measure_batch(image_root: Path, job: _Job) -> tuple[_Rows, _Rows]:
    """(CSV rows, (image, error) pairs) of the images of one job, measured in this process."""
    prepare_process()
    rows, errors = [], []
    for image in job.images:
        if (name := printable(image)) != image:
            errors.append((name, "a line break or bytes that are no UTF-8 in its name: rename the file"))
            continue
        try:
            rows.append(format_row(image, measure_image(image_root / PurePosixPath(image))))
        except ImageError as error:
            errors.append((image, str(error)))
    return rows, errors


@cache
def prepare_process() -> None:
    """Set this process up for many images one after the other: one thread, and memory that stays.

    By default glibc hands the megabytes of each image back to the kernel, which clears them again page by page: that
    doubles the time of an image. 32 MiB is the most that M_MMAP_THRESHOLD takes.
    """
    cv2.setNumThreads(1)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
        ctypes.CDLL(None).mallopt(mmap_threshold, 32 << 20)
        ctypes.CDLL(None).mallopt(trim_threshold, 64 << 20)
