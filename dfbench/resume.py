"""Write the per-image CSV batch by batch, so that a run killed at any moment goes on from what is on the disk."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dfbench.errors import InputError, shorten
from dfbench.records import COLUMNS, ERROR_COLUMNS, WARNING_COLUMNS, errors_path, info_path, warnings_path


class RecordWriter:
    """Appends scored images, errors and warnings in annotation order.

    Each `write` is one batch. A batch is done when every one of its images stands in the CSV or the errors CSV; what
    follows the last whole batch is cut off when the run resumes, and scored again in the same company as before. So the
    files of a killed and resumed run equal those of an uninterrupted one, byte for byte.

    num_done_batches: how many batches from the beginning need no scoring.
    num_rows, num_errors, num_warnings: rows on the disk.
    """

    def __init__(
        self,
        csv_path: Path,
        batches: Sequence[Sequence[str]],
        *,
        columns: Sequence[str] = COLUMNS,
        overwrite: bool = False,
    ) -> None:
        """batches: the images of each batch, in the order of the run. columns: the CSV's header, the image first.

        Raises InputError where the files hold images of another run (other annotations or order).
        """
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        paths = {"rows": csv_path, "errors": errors_path(csv_path), "warnings": warnings_path(csv_path)}
        if overwrite:
            for path in (*paths.values(), info_path(csv_path)):
                path.unlink(missing_ok=True)
        headers = {"rows": columns, "errors": ERROR_COLUMNS, "warnings": WARNING_COLUMNS}
        self._files = {name: _LineFile(paths[name], headers[name]) for name in paths}
        self.num_done_batches = self._settle(batches)
        for file in self._files.values():
            file.open()

    num_rows = property(lambda self: len(self._files["rows"].images))
    num_errors = property(lambda self: len(self._files["errors"].images))
    num_warnings = property(lambda self: len(self._files["warnings"].images))

    def _settle(self, batches: Sequence[Sequence[str]]) -> int:
        """Cut the files back to the last whole batch; the number of batches that are done."""
        rows, errors, warnings = (self._files[name] for name in ("rows", "errors", "warnings"))
        failed = set(errors.images)
        num_rows = num_errors = done = 0
        for batch in batches:
            scored = [image for image in batch if image not in failed]
            lost = [image for image in batch if image in failed]
            rows_agree = rows.images[num_rows : num_rows + len(scored)] == scored
            if not (rows_agree and errors.images[num_errors : num_errors + len(lost)] == lost):
                break
            num_rows, num_errors, done = num_rows + len(scored), num_errors + len(lost), done + 1
        for file, kept in ((rows, num_rows), (errors, num_errors)):
            _check_cut_off(file, kept, batches[done] if done < len(batches) else ())
            file.cut(kept)
        finished = set(rows.images)
        warnings.cut(sum(image in finished for image in warnings.images))
        return done

    def write(
        self,
        rows: Iterable[tuple[str, ...]],
        errors: Iterable[tuple[str, str]] = (),
        warnings: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Append one batch: CSV rows (see `records.format_rows`), (image, error) and (image, warning) pairs."""
        self._files["warnings"].append(warnings)
        self._files["errors"].append(errors)
        self._files["rows"].append(rows)

    def close(self) -> None:
        """Close the files; an errors or warnings file without rows is removed."""
        for name, file in self._files.items():
            file.close(keep_empty=name == "rows")


def _check_cut_off(file: "_LineFile", kept: int, next_batch: Sequence[str]) -> None:
    """Rows after the last whole batch must be of the next one; anything else was not written by this run."""
    for number, image in enumerate(file.images[kept:], start=kept + 2):
        if image not in next_batch:
            raise InputError(
                f"{file.path}: row {number}",
                found=f"image {image}, where this run has {next_batch[0] if next_batch else 'no more'}",
                expected="the beginning of this very run",
                remedy="repeat the command that began this file, name another --output_csv, or --overwrite it",
            )


class _LineFile:
    """One CSV on the disk: the images (first column) of its whole lines, and where each line ends."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.images: list[str] = []
        self._ends = [0]
        header = (",".join(columns) + "\n").encode()
        data = path.read_bytes() if path.exists() else b""
        if data.startswith(header):
            self._ends = [len(header)]
            self._read_lines(data[len(header) :])
        elif not header.startswith(data):
            first_line = data.split(b"\n")[0].decode(errors="replace")
            raise InputError(
                path,
                found=f"the header {shorten(first_line)}",
                expected=",".join(columns),
                remedy="name another --output_csv, or start over with --overwrite",
            )

    def _read_lines(self, data: bytes) -> None:
        # Split by hand: a CSV reader cannot tell a cut-off last line from a whole one.
        for line in data.split(b"\n")[:-1]:
            self.images.append(next(csv.reader([line.decode(errors="replace")]), [""])[0])
            self._ends.append(self._ends[-1] + len(line) + 1)

    def cut(self, num_rows: int) -> None:
        """Keep the first `num_rows` rows only."""
        del self.images[num_rows:]
        if self.path.exists():
            os.truncate(self.path, self._ends[num_rows])

    def open(self) -> None:
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if self._file.tell() == 0:
            self._writer.writerow(self.columns)
            self._file.flush()

    def append(self, rows: Iterable[Sequence[str]]) -> None:
        """Write rows; they have reached the operating system when this returns, so `kill -9` cannot lose them."""
        rows = list(rows)
        self._writer.writerows(rows)
        self._file.flush()
        self.images.extend(row[0] for row in rows)

    def close(self, *, keep_empty: bool) -> None:
        self._file.close()
        if not (self.images or keep_empty):
            self.path.unlink(missing_ok=True)
