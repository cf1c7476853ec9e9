"""Rows of a JSON array, of JSON lines or of InternVL's data-set list, streamed, for `dfbench.data.annotations`.

The content decides which of them a file is, not its extension. The released arrays are one line of hundreds of
megabytes, so they are decoded out of a sliding window.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from dfbench.errors import InputError, shorten

_CHUNK = 1 << 20
_LONGEST_ROW = 16 << 20
_WHITESPACE = " \t\r\n"
_NO_ROOT = (None, "", ".", "./")


class Place(NamedTuple):
    """Where a row stands; `str` of it is what messages show. `row` counts from 1 (lines in a file of JSON lines)."""

    path: Path
    row: int

    def __str__(self) -> str:
        return f"{self.path}: row {self.row}"


def iter_rows(path: Path | str) -> Iterator[tuple[Place, Any]]:
    """(place, decoded JSON value) of each row, streamed.

    Raises InputError for a missing file, a file that is not UTF-8 and broken JSON.
    """
    yield from _iter_file(Path(path), may_be_list=True)


def _iter_file(path: Path, *, may_be_list: bool) -> Iterator[tuple[Place, Any]]:
    """may_be_list: whether a data-set list is expected; one that names another list, or itself, is refused."""
    if path.is_dir() or not path.exists():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(path, found=what, expected="an annotation file", remedy="download it or name another one")
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = _first_character(file)
            if first == "[":
                yield from _iter_array(file, path)
            elif first == "{" and may_be_list and (listed := _dataset_list(file, path)):
                for entry in listed:
                    yield from _iter_file(path.parent / entry, may_be_list=False)
            else:
                yield from _iter_lines(file, path)
    except UnicodeDecodeError as error:
        raise InputError(
            path, found=f"bytes that are not UTF-8 ({error.reason})", expected="JSON text", remedy="save it as UTF-8"
        ) from None


def _first_character(file: IO[str]) -> str:
    while (character := file.read(1)) and character in _WHITESPACE:
        pass
    file.seek(0)
    return character


def _dataset_list(file: IO[str], path: Path) -> list[str]:
    """The annotation paths of InternVL's data-set list, relative to it; empty where the file is something else.

    Only a small file can be one: a first line that is a whole row means JSON lines. Raises InputError for a `root` that
    would move the image paths.
    """
    head = file.read(_CHUNK)
    file.seek(0)
    try:
        content = json.loads(head)
    except (ValueError, RecursionError):
        return []
    entries = list(content.values())
    if not entries or not all(
        isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in entries
    ):
        return []
    for name, entry in content.items():
        if entry.get("root") not in _NO_ROOT:
            raise InputError(
                f"{path}: entry {shorten(name)}",
                found=f"root {shorten(entry['root'])}",
                expected="none: image paths start from --image_root",
                remedy="remove it from the list, and set IMAGE_ROOT or --image_root",
            )
    return [entry["annotation"] for entry in entries]


def _iter_lines(file: IO[str], path: Path) -> Iterator[tuple[Place, Any]]:
    lines = iter(lambda: file.readline(_LONGEST_ROW), "")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = Place(path, number)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or a number of thousands of digits
                raise _broken(where, error, line) from None
            yield where, row


def _iter_array(file: IO[str], path: Path) -> Iterator[tuple[Place, Any]]:
    text = _Window(file)
    text.skip()  # the opening bracket, seen by the caller
    number = 0
    while text.peek() != "]":
        number += 1
        where = Place(path, number)
        yield where, text.decode(where)
        if text.peek() == ",":
            text.skip()
        elif text.peek() != "]":
            raise _broken(where, "no comma or closing bracket after it", text.excerpt())
    text.skip()
    if text.peek():
        raise _broken(path, "more text after the array's end", text.excerpt())


class _Window:
    """The text of a file, of which only the part around the current position is held."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._position = file, "", 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end of the file."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in _WHITESPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_on():
                return ""

    def skip(self) -> None:
        """Move past the next character that is not white space."""
        self.peek()
        self._position += 1

    def decode(self, where: Place) -> Any:
        """The JSON value here; moves past it. Raises InputError where there is none."""
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                # Either the value is broken, or the window ends inside it: only more text can tell.
                if len(self._text) - self._position > _LONGEST_ROW or not self._read_on():
                    raise _broken(where, error, self.excerpt()) from None
            else:
                return value

    def excerpt(self) -> str:
        return self._text[self._position : self._position + 100]

    def _read_on(self) -> bool:
        more = self._file.read(_CHUNK)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)


def _broken(where: object, error: Exception | str, text: str) -> InputError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
    return InputError(
        where,
        found=f"broken JSON ({reason}) at {shorten(text[:100].strip(), 60)}",
        expected="JSON",
        remedy="download the file again",
    )
