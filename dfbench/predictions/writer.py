"""Write CSVs of images batch by batch, so that a run killed at any moment goes on from what is on the disk.

A batch is the unit. It is done when each of its images stands in the CSV or the errors CSV, and is done again as a
whole otherwise, in the same company as before. So the files of a killed and resumed run equal those of an uninterrupted
one. Several processes write parts beside the CSV (`<name>.part3.csv` and its errors and warnings); `consolidate` brings
them together. `only_run` refuses a second run on the same file as long as a process of the first one writes.

The per-image CSVs are written like this, and the image features (`columns` other than those of a per-image CSV).
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from itertools import chain
from pathlib import Path

from filelock import Timeout

from dfbench.errors import InputError, shorten
from dfbench.io import csv_cells, csv_text, file_lock, write_bytes
from dfbench.predictions.schema import COLUMNS, ERROR_COLUMNS, WARNING_COLUMNS, errors_path, info_path, warnings_path

Batch = Sequence[str]
"""The images of one batch."""

Tables = list[dict[str, bytes]]
"""image -> its line in the CSV, the errors CSV and the warnings CSV."""


def _files(csv_path: Path, columns: Sequence[str]) -> list[tuple[Path, Sequence[str]]]:
    """The three files of a CSV (rows, errors, warnings) and their columns."""
    return [(csv_path, columns), (errors_path(csv_path), ERROR_COLUMNS), (warnings_path(csv_path), WARNING_COLUMNS)]


@contextmanager
def only_run(csv_path: Path) -> Iterator[None]:
    """Hold the lock of a CSV or a part. Raises InputError where another process has it, or that of one of its parts."""
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(csv_path):
        for path in part_paths(csv_path):
            with _lock(path):  # a process may outlive the killed run that it belongs to
                pass
        yield


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path))
        except Timeout:
            raise InputError(
                f"Another run is writing to {path}. Wait for it, or stop all of its processes and repeat the command."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def consolidate(
    csv_path: Path,
    batches: Sequence[Batch],
    order: Sequence[str] | None = None,
    *,
    again: Collection[str] = (),
    tables: Tables | None = None,
    columns: Sequence[str] = COLUMNS,
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
    tables = tables or read_tables(csv_path, columns)
    check_known(csv_path, chain(*tables), chain.from_iterable(batches))
    done = {index for index in _done(tables, batches) if not any(image in again for image in batches[index])}
    finished = {image for index in done for image in batches[index]}
    kept = [image for image in order or chain.from_iterable(batches) if image in finished]
    for (path, header), table in zip(_files(csv_path, columns), tables, strict=True):
        lines = [table[image] for image in kept if image in table]
        content = csv_text([header]).encode() + b"".join(lines)
        if path != csv_path and not lines:
            path.unlink(missing_ok=True)
        elif not (path.exists() and path.read_bytes() == content):
            write_bytes(path, content)
    _remove(parts)
    return done


def check_known(csv_path: Path, written: Iterable[str], images: Iterable[str]) -> None:
    """Raise InputError where images were written to a CSV that are not among those of this run."""
    known = set(images)
    if unknown := list(dict.fromkeys(image for image in written if image not in known)):
        raise InputError(
            f"{csv_path} holds {len(unknown)} image{'s' * (len(unknown) != 1)} that this run does not have, such as "
            f"{unknown[0]}. Choose no fewer images than before, name another output, or start over with --overwrite."
        )


def read_tables(csv_path: Path, columns: Sequence[str] = COLUMNS) -> Tables:
    """The rows, errors and warnings that stand in a CSV's three files and their parts; the CSV's own ones win."""
    tables: Tables = [{}, {}, {}]
    for path in reversed((csv_path, *part_paths(csv_path))):
        for lines, (file, header) in zip(tables, _files(path, columns), strict=True):
            lines.update(_read_lines(file, header))
    return tables


def second_cells(tables: Tables) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """image -> label, image -> error and image -> warning out of `read_tables`."""
    return tuple({image: _cells(line)[1] for image, line in lines.items()} for lines in tables)


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


def remove_errors(csv_path: Path) -> None:
    """Delete the errors of earlier runs: their images are not done then, even if they are not of this run."""
    for path in (csv_path, *part_paths(csv_path)):
        errors_path(path).unlink(missing_ok=True)


def _remove(csv_paths: Iterable[Path]) -> None:
    for csv_path in csv_paths:
        # The CSV last: as long as it is there, what lies beside it is found again.
        for path, _ in reversed(_files(csv_path, ())):
            path.unlink(missing_ok=True)


class RecordWriter:
    """Appends whole batches to a CSV (or a part), its errors and its warnings, each made with its header where there is
    none. The caller holds the lock (see `only_run`). Use as a context manager.
    """

    def __init__(self, csv_path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self._stack = ExitStack()
        self._files = []
        for path, header in _files(csv_path, columns):
            # Without a buffer of its own: what could not be written is not tried again when it is closed.
            file = self._stack.enter_context(path.open("ab", buffering=0))
            if file.tell() == 0:
                _append(file, [header])
            self._files.append(file)

    def write(
        self,
        rows: Iterable[Sequence[str]],
        errors: Iterable[tuple[str, str]] = (),
        warnings: Iterable[tuple[str, str]] = (),
    ) -> None:
        """One batch: CSV rows (see `schema.format_rows`), (image, error) and (image, warning) pairs.

        They have reached the operating system when this returns, so `kill -9` cannot lose them.
        """
        # The rows last: a batch whose rows are there has its warnings and errors, too.
        for file, lines in zip(reversed(self._files), (warnings, errors, rows), strict=True):
            _append(file, lines)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _append(file: FileIO, rows: Iterable[Sequence[str]]) -> None:
    data = csv_text(rows).encode()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise InputError(
            f"{file.name} cannot be written: {error.strerror}. What is done is kept: make room and repeat the command."
        ) from None


def _read_lines(path: Path, columns: Sequence[str]) -> dict[str, bytes]:
    """image -> line of one file; lines that were cut off are left out, as is a file that is not there."""
    header = csv_text([columns]).encode()
    data = path.read_bytes() if path.exists() else b""
    if header.startswith(data):
        return {}
    if not data.startswith(header):
        first_line = shorten(data.split(b"\n")[0].decode(errors="replace"))
        raise InputError(
            f"{path} has the header {first_line}, not {','.join(columns)}. Name another output, or start over with "
            "--overwrite."
        )
    # Split by hand: a CSV reader cannot tell a cut-off last line from a whole one.
    lines = ((_cells(line), line + b"\n") for line in data[len(header) :].split(b"\n")[:-1])
    return {cells[0]: line for cells, line in lines if len(cells) == len(columns)}


def _cells(line: bytes) -> list[str]:
    return csv_cells(line.decode(errors="replace"))


def _done(tables: Sequence[dict[str, bytes]], batches: Sequence[Batch]) -> set[int]:
    rows, errors, _ = tables
    return {index for index, batch in enumerate(batches) if all(image in rows or image in errors for image in batch)}
