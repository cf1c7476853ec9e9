"""Measure the images of whole sources on all cores: one CSV a source, resumable, bad images listed beside it.

`<source>.csv` has the columns of `dfbench.features`, in the order of the images' paths; `<source>.errors.csv`
(`image,error`) lists those that cannot be measured, and `<source>.json` says how many there are and what measured them.
The JSON is written last: a CSV without one belongs to a run that did not end.
"""

import ctypes
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import PIL
import scipy
from tqdm import tqdm

import dfbench
from dfbench.errors import InputError
from dfbench.features import COLUMNS, format_row, measure_image
from dfbench.image_sets import Images
from dfbench.images import ImageError
from dfbench.processes import run_jobs
from dfbench.records import errors_path, info_path, read_info, write_json
from dfbench.resume import RecordWriter

BATCH_SIZE = 8
"""Images a worker measures before they are written: what a killed run loses, for each worker."""


@dataclass(frozen=True)
class Outcome:
    """num_measured, num_errors: rows of all CSVs and errors CSVs of this run's sources, those of earlier runs included.

    num_new: images looked at by this run, in `seconds`. errors: the errors CSVs that exist.
    """

    num_measured: int
    num_errors: int
    num_new: int
    seconds: float
    errors: Sequence[Path]


@dataclass(frozen=True)
class _Job:
    number: int
    source: str
    images: tuple[str, ...]


_Measured = tuple[list[tuple[str, ...]], list[tuple[str, str]]]
"""CSV rows and (image, error) pairs of one batch."""


def measure_sources(
    images: Images, image_root: Path, output_dir: Path, *, workers: int, overwrite: bool = False, quiet: bool = False
) -> Outcome:
    """Measure all images that the CSVs in `output_dir` do not hold yet.

    Raises InputError where a CSV holds other images than this run's, and where a worker process is killed.
    """
    jobs, done = _plan(images, image_root, output_dir, overwrite)
    started = time.monotonic()
    num_images = sum(map(len, images.values()))
    hide = quiet or not sys.stderr.isatty()
    with tqdm(total=num_images, initial=done, unit="img", desc="features", smoothing=0.05, disable=hide) as bar:
        results = _in_order(run_jobs(partial(measure_batch, image_root), jobs, workers))
        for source, batches in groupby(results, key=lambda result: result[0].source):
            writer = _open_writer(source, images[source], output_dir)
            try:
                for job, (rows, errors) in batches:
                    writer.write(rows, errors)
                    bar.update(len(job.images))
            finally:
                writer.close()
            _write_info(writer, source, image_root, output_dir)
    return _count(images, output_dir, num_images - done, time.monotonic() - started)


def _plan(images: Images, image_root: Path, output_dir: Path, overwrite: bool) -> tuple[list[_Job], int]:
    """(batches left to measure, number of images done), with every CSV cut back to its last whole batch."""
    jobs: list[_Job] = []
    for source, keys in images.items():
        writer = _open_writer(source, keys, output_dir, overwrite)
        writer.close()
        left = _batches(keys)[writer.num_done_batches :]
        info_path(_csv_path(source, output_dir)).unlink(missing_ok=True)
        if not left:
            _write_info(writer, source, image_root, output_dir)
        jobs += [_Job(number, source, batch) for number, batch in enumerate(left, start=len(jobs))]
    return jobs, sum(map(len, images.values())) - sum(len(job.images) for job in jobs)


def _csv_path(source: str, output_dir: Path) -> Path:
    return output_dir / f"{source}.csv"


def _batches(keys: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(keys[start : start + BATCH_SIZE]) for start in range(0, len(keys), BATCH_SIZE)]


def _open_writer(source: str, keys: Sequence[str], output_dir: Path, overwrite: bool = False) -> RecordWriter:
    try:
        return RecordWriter(_csv_path(source, output_dir), _batches(keys), columns=COLUMNS, overwrite=overwrite)
    except InputError as error:
        remedy = "repeat the command that began this file, name another --output_dir, or start over with --overwrite"
        raise InputError(error.where, found=error.found, expected=error.expected, remedy=remedy) from None


def _write_info(writer: RecordWriter, source: str, image_root: Path, output_dir: Path) -> None:
    libraries = {"opencv": cv2, "pillow": PIL, "numpy": np, "scipy": scipy, "dfbench": dfbench}
    info = {
        "source": source,
        "num_images": writer.num_rows,
        "num_errors": writer.num_errors,
        "image_root": str(image_root),
        "versions": {name: library.__version__ for name, library in libraries.items()},
    }
    write_json(info_path(_csv_path(source, output_dir)), info)


def _in_order(results: Iterable[tuple[_Job, _Measured]]) -> Iterator[tuple[_Job, _Measured]]:
    """Results by job number; what came early waits."""
    waiting: dict[int, tuple[_Job, _Measured]] = {}
    following = 0
    for job, measured in results:
        waiting[job.number] = (job, measured)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _count(images: Images, output_dir: Path, num_new: int, seconds: float) -> Outcome:
    infos = [read_info(_csv_path(source, output_dir)) for source in images]
    listed = [errors_path(_csv_path(source, output_dir)) for source in images]
    return Outcome(
        sum(info["num_images"] for info in infos),
        sum(info["num_errors"] for info in infos),
        num_new,
        seconds,
        [path for path in listed if path.exists()],
    )


def measure_batch(image_root: Path, job: _Job) -> _Measured:
    """Measure the images of one job in this process."""
    prepare_process()
    rows, errors = [], []
    for image in job.images:
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
