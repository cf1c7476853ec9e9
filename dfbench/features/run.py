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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath

import cv2

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
    remove_errors,
    remove_results,
    written_cells,
)
from dfbench.provenance import describe_software

BATCH_SIZE = 8
"""Images that a worker measures before they are written: what a killed run loses, for each worker."""

Rows = list[tuple[str, ...]]


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


def measure_sources(
    images: Images, image_root: Path, output_dir: Path, *, workers: int, overwrite: bool = False, quiet: bool = False
) -> Outcome:
    """Measure all images that `output_dir` does not hold yet, and write the files of each source.

    Raises InputError where a CSV holds images that are not of this run or has other columns, where another run is
    writing to it, where it cannot be written, and where a worker process is killed.
    """
    started = time.monotonic()
    for name in images:
        with only_run(output_dir / f"{name}.csv"):  # where another run has one of them, nothing is touched
            pass
    sources = {name: _Source(output_dir / f"{name}.csv", image_root, keys, overwrite) for name, keys in images.items()}
    jobs = [job for source in sources.values() for job in source.jobs]
    num_images, num_new = sum(map(len, images.values())), sum(len(job.images) for job in jobs)
    with (
        ExitStack() as stack,
        progress_bar(None, "measuring", "images", quiet, num_images, num_images - num_new) as bar,
    ):
        for source in sources.values():
            stack.callback(source.close)
            if not source.jobs:
                source.finish()
        for job, (rows, errors) in run_jobs(partial(measure_batch, image_root), jobs, workers):
            sources[job.source].write(rows, errors)
            bar.update(len(job.images))
    num_errors = sum(source.num_errors for source in sources.values())
    listed = [errors_path(source.csv_path) for source in sources.values() if source.num_errors]
    return Outcome(num_images - num_errors, num_errors, num_new, time.monotonic() - started, listed)


class _Source:
    """The images of one source and its files, which are locked from its first batch to its last."""

    def __init__(self, csv_path: Path, image_root: Path, images: Sequence[str], overwrite: bool) -> None:
        self.csv_path, self.image_root, self.num_errors = csv_path, image_root, 0
        self._names = [printable(image) for image in images]
        if overwrite:
            with only_run(csv_path):
                remove_results(csv_path)
        measured, _, _ = written_cells(csv_path, COLUMNS)
        check_known(csv_path, measured, self._names)
        missing = [image for image, name in zip(images, self._names, strict=True) if name not in measured]
        batches = (missing[start : start + BATCH_SIZE] for start in range(0, len(missing), BATCH_SIZE))
        self.jobs = [_Job(csv_path.stem, tuple(batch)) for batch in batches]
        self._num_left = len(self.jobs)
        self._stack = ExitStack()
        self._writer: RecordWriter | None = None

    def write(self, rows: Rows, errors: Rows) -> None:
        """Keep what became of one job; after the last one, the files are put in place."""
        if self._writer is None:
            self._begin()
            self._writer = self._stack.enter_context(RecordWriter(part_path(self.csv_path, 0), COLUMNS))
        self._writer.write(rows, errors)
        self.num_errors += len(errors)
        self._num_left -= 1
        if self._num_left == 0:
            self._writer.close()
            self.finish()

    def _begin(self) -> None:
        self._stack.enter_context(only_run(self.csv_path))
        remove_errors(self.csv_path)
        self._consolidate()

    def finish(self) -> None:
        """Bring the files into the order of the images. A CSV that holds just these rows already stays as it is."""
        if self._writer is None:
            self._begin()
        else:
            self._consolidate()
        counts = {"num_images": len(self._names) - self.num_errors, "num_errors": self.num_errors}
        if self.jobs or not counts.items() <= read_info(self.csv_path).items():
            software = describe_software(("opencv-python-headless", "pillow", "numpy", "scipy"))
            content = {"source": self.csv_path.stem, **counts, "image_root": str(self.image_root), **software}
            write_json(info_path(self.csv_path), content)
        self.close()

    def _consolidate(self) -> None:
        consolidate(self.csv_path, [[name] for name in self._names], columns=COLUMNS)

    def close(self) -> None:
        """Give the lock back."""
        self._stack.close()


# --------------------------------------------------------------------------------------------------- in the workers


def measure_batch(image_root: Path, job: _Job) -> tuple[Rows, Rows]:
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
