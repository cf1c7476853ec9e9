"""Small files as a whole: put in place at once, so that a reader never sees half of one; JSON objects read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfbench.errors import InputError, shorten


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes the place of `path` at the end.

    An OSError has a file's name (see `naming`).
    """
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        yield temporary
        temporary.replace(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file it was: a full disk shows in a write, whose error names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file, put in place at once. Returns its path."""
    with put_in_place(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file, put in place at once, in a folder that is made if need be. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json_object(path: Path, *, expected: str, remedy: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises InputError in these words for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = f"broken JSON ({error})"
    else:
        if isinstance(content, dict):
            return content
        reason = shorten(content)
    raise InputError(path, found=reason, expected=expected, remedy=remedy)
