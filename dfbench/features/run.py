"""Measure the images of whole sources on all cores: one CSV a source, resumable, bad images listed beside it.

`<source>.csv` has the columns of `dfbench.features.compute`, one row an image in the order of their paths;
`<source>.errors.csv` (`image,error`) lists those that cannot be measured; `<source>.json` says what measured them. All
three are put in place at the end of a source. Until then its rows pile up in `<source>.csv.part`, from which a killed
run goes on.

What a CSV holds is not measured again, even where the run has more images than the last one; errors are tried again.
"""

import ctypes
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath

import cv2
from tqdm import tqdm

from dfbench.data.discovery import Images, printable
from dfbench.data.images import ImageError
from dfbench.errors import InputError, shorten
from dfbench.features.compute import COLUMNS, format_row, measure_image
from dfbench.io import csv_cells, csv_text, naming, write_json, write_text
from dfbench.parallel import run_jobs
from dfbench.predictions.schema import ERROR_COLUMNS, errors_path, info_path
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

    Raises InputError where a CSV holds images that are not of this run, and where a worker process is killed; OSError
    with the CSV as its file where one cannot be written.
    """
    started = time.monotonic()
    stores = {source: _Store(output_dir / f"{source}.csv", image_root, overwrite) for source in images}
    jobs = [job for source in images for job in _jobs(source, images[source], stores[source])]
    left = Counter(job.source for job in jobs)
    errors: dict[str, Rows] = defaultdict(list)
    num_images, num_new = sum(map(len, images.values())), sum(len(job.images) for job in jobs)
    for source in (source for source in images if left[source] == 0):
        stores[source].finish(images[source], [])
    hide = quiet or not sys.stderr.isatty()
    with tqdm(total=num_images, initial=num_images - num_new, unit="img", smoothing=0.05, disable=hide) as bar:
        for job, (rows, failed) in run_jobs(partial(measure_batch, image_root), jobs, workers):
            stores[job.source].append(rows)
            errors[job.source] += failed
            left[job.source] -= 1
            if left[job.source] == 0:
                stores[job.source].finish(images[job.source], errors[job.source])
            bar.update(len(job.images))
    num_errors = sum(map(len, errors.values()))
    listed = [errors_path(stores[source].path) for source in images if errors[source]]
    return Outcome(num_images - num_errors, num_errors, num_new, time.monotonic() - started, listed)


def _jobs(source: str, keys: Sequence[str], store: "_Store") -> Iterator[_Job]:
    """The images that the store does not hold, in batches."""
    known = store.lines()
    if strangers := sorted(known.keys() - set(keys)):
        raise InputError(
            store.path,
            found=f"{len(strangers)} measured images that this run leaves out, {strangers[0]} first",
            expected=f"none but the {len(keys)} images of this run",
            remedy="choose no fewer images than before (--limit_per_source, --annotations, --image_root), name another "
            "--output_dir for a smaller choice, or start over with --overwrite",
        )
    missing = [key for key in keys if key not in known]
    for start in range(0, len(missing), BATCH_SIZE):
        yield _Job(source, tuple(missing[start : start + BATCH_SIZE]))


class _Store:
    """The files of one source."""

    def __init__(self, path: Path, image_root: Path, overwrite: bool) -> None:
        self.path, self.image_root = path, image_root
        self._part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for old in (path, self._part, errors_path(path), info_path(path)):
                old.unlink(missing_ok=True)
        if self._part.exists():  # a kill can leave half a line
            os.truncate(self._part, self._part.read_bytes().rfind(b"\n") + 1)

    def lines(self) -> dict[str, str]:
        """Image -> its line of the CSV, of all that is measured. Raises InputError for a CSV with other columns."""
        found = {}
        for path in (self.path, self._part):
            text = path.read_bytes().decode(errors="replace") if path.exists() else ""
            header, *lines = text.split("\n")
            if text and header != ",".join(COLUMNS):
                raise InputError(
                    path,
                    found=f"the header {shorten(header)}",
                    expected=",".join(COLUMNS),
                    remedy="name another --output_dir, or start over with --overwrite",
                )
            # What follows the last line break is "", or half a row.
            rows = ((csv_cells(line), line + "\n") for line in lines[:-1])
            found.update((cells[0], line) for cells, line in rows if len(cells) == len(COLUMNS))
        return found

    def append(self, rows: Rows) -> None:
        """Keep measured rows; they have reached the operating system when this returns."""
        with naming(self._part), self._part.open("a", encoding="utf-8", newline="") as file:
            file.write(csv_text([COLUMNS] * (file.tell() == 0) + rows))

    def finish(self, keys: Sequence[str], errors: Rows) -> None:
        """Put the CSV in place, in the order of `keys`, and its errors and metadata before it.

        A CSV that holds just these rows already stays as it is, and broken lines are dropped from any other.
        """
        known = self.lines()
        text = "".join([csv_text([COLUMNS]), *(known[key] for key in keys if key in known)])
        if errors:
            write_text(errors_path(self.path), csv_text([ERROR_COLUMNS, *sorted(errors)]))
        else:
            errors_path(self.path).unlink(missing_ok=True)
            if not self._part.exists() and self.path.exists() and self.path.read_bytes() == text.encode():
                return
        software = describe_software(("opencv-python-headless", "pillow", "numpy", "scipy"))
        counts = {"num_images": len(known), "num_errors": len(errors), "image_root": str(self.image_root)}
        write_json(info_path(self.path), {"source": self.path.stem, **counts, **software})
        write_text(self.path, text)
        self._part.unlink(missing_ok=True)


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
