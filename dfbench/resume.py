"""Write the per-image CSV batch by batch, so that a run killed at any moment goes on from what is on the disk."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dfbench.errors import InputError, shorten
from dfbench.records import COLUMNS, ERROR_COLUMNS, errors_path, info_path


class RecordWriter:
    """Appends scored images and errors, in annotation order, so that a killed run can go on from what is on the disk.

    Each `write` is one batch. A batch counts as done when every one of its images stands in one of the two files;
    whatever follows the last whole batch is cut off when the run resumes, and scored again in the same batch as before.
    """

    def __init__(self, csv_path: Path, batches: Sequence[Sequence[str]], *, overwrite: bool = False) -> None:
        """batches: the images of each batch, in the order of the run.

        Raises InputError where the files hold images of another run (other annotations or order).
        """
        self.csv_path, self.errors_path = csv_path, errors_path(csv_path)
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for path in (self.csv_path, self.errors_path, info_path(csv_path)):
                path.unlink(missing_ok=True)
        rows, errors = _LineFile(self.csv_path, COLUMNS), _LineFile(self.errors_path, ERROR_COLUMNS)
        self.num_done_batches = self._settle(rows, errors, batches)
        self.num_rows, self.num_errors = len(rows.images), len(errors.images)
        self._rows, self._errors = rows.open(), errors.open()

    @staticmethod
    def _settle(rows: "_LineFile", errors: "_LineFile", batches: Sequence[Sequence[str]]) -> int:
        """Cut both files back to the last whole batch; the number of batches that are done."""
        num_rows = num_errors = done = 0
        failed = set(errors.images)
        for batch in batches:
            in_errors = [image for image in batch if image in failed]
            in_rows = [image for image in batch if image not in failed]
            if (
                rows.images[num_rows : num_rows + len(in_rows)] != in_rows
                or errors.images[num_errors : num_errors + len(in_errors)] != in_errors
            ):
                break
            num_rows, num_errors, done = num_rows + len(in_rows), num_errors + len(in_errors), done + 1
        next_batch = batches[done] if done < len(batches) else ()
        for file, kept in ((rows, num_rows), (errors, num_errors)):
            strange = [image for image in file.images[kept:] if image not in next_batch]
            if strange:
                raise InputError(
                    f"{file.path}: row {kept + 2 + file.images[kept:].index(strange[0])}",
                    found=f"image {strange[0]}, where this run has {next_batch[0] if next_batch else 'no more'}",
                    expected="the beginning of this very run",
                    remedy="repeat the command that began this file, or start over with --overwrite",
                )
            file.cut(kept)
        return done

    def write(self, rows: Iterable[tuple[str, ...]], errors: Iterable[tuple[str, str]]) -> None:
        """Append one batch: CSV rows (see `format_rows`) and (image, error) pairs."""
        rows, errors = list(rows), list(errors)
        self._errors.writerows(errors)
        self._rows.writerows(rows)
        self.num_rows += len(rows)
        self.num_errors += len(errors)

    def close(self) -> None:
        """Close both files; an errors file without errors is removed."""
        self._rows.close()
        self._errors.close()
        if self.num_errors == 0:
            self.errors_path.unlink(missing_ok=True)


class _LineFile:
    """One of the two files on the disk: the images of its whole lines and where each line ends."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.images: list[str] = []
        self._ends = [0]
        header = (",".join(columns) + "\n").encode()
        data = path.read_bytes() if path.exists() else b""
        if not data.startswith(header):
            if not header.startswith(data):
                raise InputError(
                    path,
                    found=f"the header {shorten(data.splitlines()[0].decode(errors='replace'))}",
                    expected=",".join(columns),
                    remedy="name another --output_csv, or start over with --overwrite",
                )
            return
        self._ends = [len(header)]
        # Lines are split by hand: a csv reader cannot tell a cut-off last line from a whole one.
        for line in data[len(header) :].splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            self.images.append(next(csv.reader([line.decode(errors="replace")]))[0])
            self._ends.append(self._ends[-1] + len(line))

    def cut(self, num_rows: int) -> None:
        """Keep the first `num_rows` rows only."""
        del self.images[num_rows:]
        if self.path.exists():
            os.truncate(self.path, self._ends[num_rows])

    def open(self) -> "_Appender":
        return _Appender(self.path, None if self._ends[0] else self.columns)


class _Appender:
    """An open CSV whose every `writerows` reaches the operating system before it returns."""

    def __init__(self, path: Path, header: Sequence[str] | None) -> None:
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if header:
            self.writerows([header])

    def writerows(self, rows: Iterable[Sequence[str]]) -> None:
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
