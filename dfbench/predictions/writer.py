"""Write the per-image CSV batch by batch, so that a run killed at any moment goes on from what is on the disk.

A batch is the unit. It is done when each of its images stands in the CSV or the errors CSV, and is scored again as a
whole otherwise, in the same company as before. So the files of a killed and resumed run equal those of an uninterrupted
one. Several processes write parts beside the CSV (`<name>.part3.csv` and its errors and warnings); `consolidate` brings
them together. A second run on the same file is refused while the first goes on (`only_run`), and while any process of a
killed one still writes (`refuse_busy`): locks go with the processes that hold them.
"""

import fcntl
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from dfbench.errors import InputError, shorten
from dfbench.io import csv_cells, csv_text, write_bytes
from dfbench.predictions.schema import COLUMNS, ERROR_COLUMNS, WARNING_COLUMNS, errors_path, info_path, warnings_path

Batch = Sequence[str]
"""The images of one batch."""

Tables = list[dict[str, bytes]]
"""image -> its line in the CSV, the errors CSV and the warnings CSV."""

_KINDS = ((Path, COLUMNS), (errors_path, ERROR_COLUMNS), (warnings_path, WARNING_COLUMNS))
"""The three files of a run: how each path follows from the CSV's, and its columns."""


@contextmanager
def only_run(csv_path: Path) -> Iterator[None]:
    """Hold the lock of a CSV. Raises InputError where another run has it."""
    path = csv_path.with_name(f".{csv_path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("ab"))
            _claim(file, csv_path)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break  # else a run that ended in between took the file away
        stack.callback(path.unlink, missing_ok=True)
        yield


def refuse_busy(csv_path: Path) -> None:
    """Raise InputError where a run is writing to a CSV or to one of its parts."""
    for path in (csv_path, *part_paths(csv_path)):
        if path.exists():
            with path.open("ab") as file:
                _claim(file, path)


def consolidate(
    csv_path: Path,
    batches: Sequence[Batch],
    order: Sequence[str] | None = None,
    *,
    again: Collection[str] = (),
    tables: Tables | None = None,
) -> set[int]:
    """Bring the files of earlier runs, parts included, into the CSV, its errors and its warnings.

    order: all images as the files shall have them; without it, as the batches do. again: images whose batches do not
    count as done. tables: what `read_tables` gave of the files, where that was called already. Whatever belongs to a
    batch that is not done is dropped. Returns the indices of the batches that are done. Each file is put in place at
    once, the parts are removed after that: a kill in between loses nothing. Raises InputError where a file holds images
    that are not of this run, or has other columns.
    """
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    parts = part_paths(csv_path)
    tables = tables or read_tables(csv_path)
    _refuse_strangers(csv_path, tables, batches)
    done = {index for index in _done(tables, batches) if not any(image in again for image in batches[index])}
    scored = {image for index in done for image in batches[index]}
    kept = [image for image in order or chain.from_iterable(batches) if image in scored]
    for (path_of, columns), lines in zip(_KINDS, tables, strict=True):
        path = path_of(csv_path)
        _write_lines(path, columns, [lines[image] for image in kept if image in lines], keep_empty=path == csv_path)
    _remove(parts)
    return done


def done_batches(csv_path: Path, batches: Sequence[Batch]) -> set[int]:
    """Indices of the batches that are done in the CSV and its errors; changes nothing."""
    return _done(_tables([csv_path]), batches)


def read_tables(csv_path: Path) -> Tables:
    """The rows, errors and warnings that stand in a CSV's three files and their parts."""
    return _tables((csv_path, *part_paths(csv_path)))


def written_cells(csv_path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """image -> label, image -> error and image -> warning out of the three files and their parts."""
    return second_cells(read_tables(csv_path))


def second_cells(tables: Tables) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """image -> label, image -> error and image -> warning out of `read_tables`."""
    return tuple({image: _cells(line)[1] for image, line in lines.items()} for lines in tables)


def count_rows(csv_path: Path) -> dict[str, int]:
    """{"rows", "errors", "warnings": number of images in each of the three files}."""
    return dict(zip(("rows", "errors", "warnings"), map(len, _tables([csv_path])), strict=True))


def part_path(csv_path: Path, rank: int) -> Path:
    """`results/a.csv` -> `results/a.part3.csv`."""
    return csv_path.with_name(f"{csv_path.stem}.part{rank}.csv")


def part_paths(csv_path: Path) -> list[Path]:
    """The parts that lie beside a CSV, whatever number of processes wrote them."""
    name = re.compile(re.escape(csv_path.stem) + r"\.part\d+\.csv")
    return sorted(path for path in csv_path.parent.glob("*.csv") if name.fullmatch(path.name))


def remove_results(csv_path: Path) -> None:
    """Delete a CSV, everything beside it that belongs to it, and its parts."""
    _remove((csv_path, *part_paths(csv_path)))
    info_path(csv_path).unlink(missing_ok=True)


def _remove(csv_paths: Iterable[Path]) -> None:
    for csv_path in csv_paths:
        # The CSV last: as long as it is there, what lies beside it is found again.
        for path_of, _ in reversed(_KINDS):
            path_of(csv_path).unlink(missing_ok=True)


class RecordWriter:
    """Appends whole batches to a CSV (or a part), its errors and its warnings. Use as a context manager."""

    def __init__(self, csv_path: Path) -> None:
        self._files = [_Appender(path_of(csv_path), columns) for path_of, columns in _KINDS]

    def write(
        self,
        rows: Iterable[Sequence[str]],
        errors: Iterable[tuple[str, str]] = (),
        warnings: Iterable[tuple[str, str]] = (),
    ) -> None:
        """One batch: CSV rows (see `records.format_rows`), (image, error) and (image, warning) pairs.

        They have reached the operating system when this returns, so `kill -9` cannot lose them.
        """
        # The rows last: a batch whose rows are there has its warnings and errors, too.
        for file, lines in zip(reversed(self._files), (warnings, errors, rows), strict=True):
            file.append(lines)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()


class _Appender:
    """An open and locked CSV, made with its header where there is none. Without a buffer of its own: what could not be
    written is not tried again when it is closed.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)
        _claim(self._file, path)
        if self._file.tell() == 0:
            self.append([columns])

    def append(self, rows: Iterable[Sequence[str]]) -> None:
        data = csv_text(rows).encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise InputError(
                self._path,
                found=str(error.strerror),
                expected="room for the rows",
                remedy="what is scored is kept: make room and repeat the command",
            ) from None

    def close(self) -> None:
        self._file.close()


def _claim(file: BinaryIO, path: Path) -> None:
    """Lock a file until it is closed, by a kind of lock that image workers, which may outlive us, do not inherit."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(
            path,
            found="a file that another run is writing to",
            expected="one run at a time",
            remedy="wait for that run or stop it, all of its processes, and repeat the command",
        ) from None
    except OSError:
        pass  # a file system without locks


def _tables(csv_paths: Sequence[Path]) -> Tables:
    """The lines of a CSV and its parts; the first file wins."""
    tables: Tables = []
    for path_of, columns in _KINDS:
        lines: dict[str, bytes] = {}
        for csv_path in csv_paths:
            lines = _read_lines(path_of(csv_path), columns) | lines
        tables.append(lines)
    return tables


def _read_lines(path: Path, columns: Sequence[str]) -> dict[str, bytes]:
    """image -> line of one file; lines that were cut off are left out, as is a file that is not there."""
    header = (",".join(columns) + "\n").encode()
    data = path.read_bytes() if path.exists() else b""
    if header.startswith(data):
        return {}
    if not data.startswith(header):
        first_line = data.split(b"\n")[0].decode(errors="replace")
        raise InputError(
            path,
            found=f"the header {shorten(first_line)}",
            expected=",".join(columns),
            remedy="name another --output_csv, or start over with --overwrite",
        )
    # Split by hand: a CSV reader cannot tell a cut-off last line from a whole one.
    lines = ((_cells(line), line + b"\n") for line in data[len(header) :].split(b"\n")[:-1])
    return {cells[0]: line for cells, line in lines if len(cells) == len(columns)}


def _cells(line: bytes) -> list[str]:
    return csv_cells(line.decode(errors="replace"))


def _done(tables: Sequence[dict[str, bytes]], batches: Sequence[Batch]) -> set[int]:
    rows, errors, _ = tables
    return {index for index, batch in enumerate(batches) if all(image in rows or image in errors for image in batch)}


def _refuse_strangers(csv_path: Path, tables: Sequence[dict[str, bytes]], batches: Sequence[Batch]) -> None:
    known = {image for batch in batches for image in batch}
    strangers = list(dict.fromkeys(image for lines in tables for image in lines if image not in known))
    if strangers:
        raise InputError(
            csv_path,
            found=f"{len(strangers)} images that this run does not have, such as {strangers[0]}",
            expected="rows of this very run",
            remedy="repeat the command that began this file, name another --output_csv, or --overwrite it",
        )


def _write_lines(path: Path, columns: Sequence[str], lines: Sequence[bytes], *, keep_empty: bool) -> None:
    content = (",".join(columns) + "\n").encode() + b"".join(lines)
    if not (lines or keep_empty):
        path.unlink(missing_ok=True)
    elif not (path.exists() and path.read_bytes() == content):
        write_bytes(path, content)
