"""Small files written as a whole, so that a reader never sees half of one; locks; lines of a CSV and JSON objects."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dfbench.errors import InputError, shorten

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes the place of `path` at the end.

    A block that fails leaves what was there before, and nothing beside it. An OSError gets the file's name: a full disk
    shows in a write, whose error names none.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


@contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder, which need not exist: that of `.<name>.lock` beside it, removed at the end.

    The lock goes with this process, however that ends. Forked children, which may outlive us, do not keep it: filelock
    closes it in them. Raises filelock.Timeout where another process has it, unless we `wait`, and OSError where the
    folder or the file system takes no lock.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    # A soft lock, filelock's way out on a file system without locks, would outlive a killed process.
    with FileLock(lock_path, timeout=-1 if wait else 0, fallback_to_soft=False):
        try:
            yield
        finally:
            with suppress(OSError):
                lock_path.unlink()  # while it is ours: who has it open already, looks again


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file, put in place at once. Returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file, put in place at once; what UTF-8 cannot hold, as "?". Returns its path."""
    return write_bytes(path, text.encode(errors="replace"))


def write_csv(path: Path, frame: "pd.DataFrame") -> Path:
    """Write a table without its index, put in place at once. Returns its path.

    Float32 columns come out as the shortest decimals that read back the same, NaN as an empty cell.
    """
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
    return path


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows as the lines of a CSV, each with its line break."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def csv_cells(line: str) -> list[str]:
    """The cells of one line of a CSV, without its line break; none of a line that is no row."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a stray carriage return, for one
        return []


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file, put in place at once, in a folder that is made if need be. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json_object(path: Path, *, expected: str, remedy: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises InputError for anything else, in these words."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found = f"broken JSON ({error})"
    else:
        if isinstance(content, dict):
            return content
        found = shorten(content)
    raise InputError(f"{path} holds {found}, not {expected}: {remedy}.")
