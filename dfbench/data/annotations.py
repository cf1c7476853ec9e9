"""Annotation files: read every released shape, say what is wrong with a row, write clean ones.

Three shapes are read, as a JSON array (`.json`) or one object a line (`.jsonl`); the content decides, not the name:

- `{"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": "B"}],
  "images": "DFBench/Kolors/1.jpg"}`; `images` may also be a list of one.
- `{"image": "...", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": "B"}]}`; the released
  files have `[{"role": "assistant", "content": "B"}]` in place of the string.
- InternVL's data-set list, `{"name": {"annotation": "img_test.jsonl", ...}}`: the files it names, one after the other.
  A `root` other than the list's own folder is refused: image paths start from `--image_root`.

All are streamed: the released arrays are one line of hundreds of megabytes, decoded out of a sliding window.
"""

import json
import logging
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from dfbench.data.sources import CATALOGUE, LABELS, contradicts_catalogue, source_of
from dfbench.errors import InputError, shorten
from dfbench.io import atomic_write

logger = logging.getLogger(__name__)

QUESTION = "Is this a real image or a generated image? A: 'real' or B: 'generated'. Just answer with A or B."
"""A question in the words of DFBench, for images without annotations. The released rows bring their own wording, which
training and scoring read from there."""

_CHUNK = 1 << 20
_LONGEST_ROW = 16 << 20
_WHITESPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image.

    image: the key, its path in the annotation file (POSIX, no leading `./`).
    label: A (real), B (fake) or "" where the row has no answer.
    question: the user's turn as it stands in the row, `<image>` included.
    """

    image: str
    label: str
    question: str

    @property
    def source(self) -> str:
        return source_of(self.image)


class Place(NamedTuple):
    """Where a row stands; `str` of it is what messages show. `row` counts from 1 (lines in a file of JSON lines)."""

    path: Path
    row: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}"


# ------------------------------------------------------------------------------------------------------------- samples


def read_annotations(path: Path | str) -> list[Sample]:
    """All samples of an annotation file, in file order.

    A row that repeats an earlier one (same image, label and question) is dropped. Raises InputError, naming file and
    row, for a missing or empty file, broken JSON, a row of neither shape, a label other than A or B, and an image that
    stands in two rows that differ. The first bad row is named, the others counted.
    """
    rows, problems = check_annotations(path)
    if problems:
        others = f"; {len(problems) - 1} more rows of this file are bad" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}. Correct or remove this row{others}.")
    return [sample for _, sample in rows]


def check_annotations(path: Path | str) -> tuple[list[tuple[Place, Sample]], list[str]]:
    """(good samples with their places, in file order; place and fault of each bad row, without a full stop).

    Labels that contradict the catalogue of sources are warned of, and stay. Raises InputError where the file is
    unusable.
    """
    rows: list[tuple[Place, Sample]] = []
    problems: list[str] = []
    seen: dict[str, tuple[Place, Sample]] = {}
    for place, sample in iter_samples(path):
        if isinstance(sample, str):
            problems.append(f"{place}: {sample}")
            continue
        first_place, first = seen.setdefault(sample.image, (place, sample))
        if first is sample:
            rows.append((place, sample))
        elif first != sample:
            problems.append(f"{place}: image {sample.image} has another label or question than in {first_place}")
    if not rows and not problems:
        raise InputError(f"{path}: this annotation file has no rows. Download it again.")
    _warn_of_contradictions(path, [sample for _, sample in rows])
    return rows, problems


def _warn_of_contradictions(path: Path | str, samples: Iterable[Sample]) -> None:
    """A warning only: a folder of one's own may have the name of a source."""
    wrong = [sample for sample in samples if contradicts_catalogue(sample.source, sample.label)]
    if wrong:
        first, counts = wrong[0], Counter(sample.source for sample in wrong)
        logger.warning(
            f"warning: {path}: {len(wrong):,} labels contradict the catalogue of sources "
            f"({', '.join(f'{source}: {count:,}' for source, count in counts.items())}), such as {first.image}, which "
            f"has {first.label} where every image of {first.source} has {CATALOGUE[first.source].label}. "
            "Correct the labels or rename the folders."
        )


def iter_samples(path: Path | str) -> Iterator[tuple[Place, Sample | str]]:
    """Each row's place and its Sample, or what is wrong with it, in words; streamed, repeated rows included.

    Raises InputError where the file itself is unusable (see `iter_rows`).
    """
    for place, row in iter_rows(path):
        try:
            yield place, parse_row(row)
        except InputError as error:
            yield place, str(error)


def parse_row(row: Any) -> Sample:
    """One decoded row of either shape as a Sample. Raises InputError, saying what is wrong but not where."""
    if isinstance(row, dict) and "messages" in row:
        image, turns = row.get("images"), _turns(row["messages"], "role", "content")
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
    elif isinstance(row, dict) and "conversations" in row:
        image, turns = row.get("image"), _turns(row["conversations"], "from", "value")
    else:
        what = f"has the keys {sorted(row)}" if isinstance(row, dict) else f"is {shorten(row)}"
        raise InputError(f"the row {what}; expected `messages` and `images`, or `image` and `conversations`")
    if not isinstance(image, str) or not (key := normalize_key(image)) or not _is_plain(image):
        raise InputError(f"the image is {shorten(image)}; expected one path, without control characters")
    question = turns.get("user")
    if not isinstance(question, str) or not question.replace("<image>", "").strip() or _has_surrogate(question):
        raise InputError(f"the question is {shorten(question)}; expected a user (human) turn with text")
    if question.count("<image>") > 1:
        raise InputError(f"the question has {question.count('<image>')} times <image>; each row has one image")
    answer = turns.get("assistant", "")
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict):
        answer = answer[0].get("content")
    if not isinstance(answer, str) or (answer.strip() and answer.strip() not in LABELS):
        raise InputError(f"the label is {shorten(answer)}; expected A (real) or B (generated)")
    return Sample(key, answer.strip(), question)


def normalize_key(image: str) -> str:
    """An image path as a key, one for each file: forward slashes, no `//`, `./` or `a/../`; "" where none is left."""
    key = image.strip().replace("\\", "/")
    if "//" in key or "./" in key or key.endswith(("/.", "/..")) or key == ".":
        key = posixpath.normpath(key).replace(
            "//", "/"
        )  # POSIX gives two slashes at the beginning a meaning of their own
        key = "" if key == "." else key
    return key


def _is_plain(text: str) -> bool:
    """No control character (a line break would break CSVs and logs) and nothing that UTF-8 cannot hold."""
    # The first test alone passes nearly every key; the second one is ten times as slow.
    return text.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _has_surrogate(text: str) -> bool:
    """Half of a UTF-16 pair, which JSON escapes can name and no file can be written with."""
    return not text.isascii() and any(unicodedata.category(character) == "Cs" for character in text)


_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def _turns(turns: Any, who: str, what: str) -> dict[str, Any]:
    """{"system" | "user" | "assistant": content}, whatever the two shapes call them."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"the turns are {shorten(turns)}; expected a list of objects")
    found: dict[str, Any] = {}
    for turn in turns:
        role = turn.get(who)
        name = _ROLES.get(role) if isinstance(role, str) else None
        if name is None or name in found:
            raise InputError(f"there is a turn of {shorten(role)}; expected one question and one answer")
        found[name] = turn.get(what)
    return found


# ------------------------------------------------------------------------------------------------------ streamed JSON


def iter_rows(path: Path | str) -> Iterator[tuple[Place, Any]]:
    """(place, decoded JSON value) of each row, streamed.

    Raises InputError for a missing file, a file that is not UTF-8 and broken JSON.
    """
    yield from _iter_file(Path(path), may_be_list=True)


def _iter_file(path: Path, *, may_be_list: bool) -> Iterator[tuple[Place, Any]]:
    """may_be_list: whether a data-set list is expected; one that names another list, or itself, is refused."""
    if not path.is_file():
        what = "is a folder, not an annotation file" if path.is_dir() else "no such annotation file"
        raise InputError(f"{path}: {what}. Download the annotations, or name another file.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(_CHUNK)
            while head and not head.strip(_WHITESPACE):
                head = file.read(_CHUNK)
            file.seek(0)
            if head.lstrip(_WHITESPACE).startswith("["):
                yield from _iter_array(file, path)
            elif may_be_list and (listed := _dataset_list(head, path)):
                for entry in listed:
                    yield from _iter_file(path.parent / entry, may_be_list=False)
            else:
                yield from _iter_lines(file, path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: bytes that are not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _dataset_list(head: str, path: Path) -> list[str]:
    """The annotation paths of InternVL's data-set list, relative to it; empty where the file is something else.

    head: the file's beginning. Only a small file can be a list: a first line that is a whole row means JSON lines.
    Raises InputError for a `root` that would move the image paths.
    """
    try:
        content = json.loads(head)
    except (ValueError, RecursionError):
        return []
    if not isinstance(content, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in content.values()
    ):
        return []
    for name, entry in content.items():
        if entry.get("root") not in (None, "", ".", "./"):
            raise InputError(
                f"{path}, entry {shorten(name)}: root is {shorten(entry['root'])}, but image paths start from "
                "--image_root. Remove it from the list, and set IMAGE_ROOT or --image_root."
            )
    return [entry["annotation"] for entry in content.values()]


def _iter_lines(file: IO[str], path: Path) -> Iterator[tuple[Place, Any]]:
    lines = iter(lambda: file.readline(_LONGEST_ROW), "")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = Place(path, number)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or a number of thousands of digits
                raise _broken(place, error, line) from None
            yield place, row


def _iter_array(file: IO[str], path: Path) -> Iterator[tuple[Place, Any]]:
    text = _Window(file)
    text.skip()  # the opening bracket, seen by the caller
    number = 0
    while text.peek() != "]":
        number += 1
        place = Place(path, number)
        yield place, text.decode(place)
        if text.peek() == ",":
            text.skip()
        elif text.peek() != "]":
            raise _broken(place, "no comma or closing bracket after it", text.excerpt())
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

    def decode(self, place: Place) -> Any:
        """The JSON value here; moves past it. Raises InputError where there is none."""
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                # Either the value is broken, or the window ends inside it: only more text can tell.
                if len(self._text) - self._position > _LONGEST_ROW or not self._read_on():
                    raise _broken(place, error, self.excerpt()) from None
            else:
                return value

    def excerpt(self) -> str:
        return self._text[self._position : self._position + 100]

    def _read_on(self) -> bool:
        more = self._file.read(_CHUNK)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)


def _broken(place: object, error: Exception | str, text: str) -> InputError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
    return InputError(f"{place}: broken JSON ({reason}) at {shorten(text[:100].strip(), 60)}. Download the file again.")


# ------------------------------------------------------------------------------------------------------------- writing


class AnnotationWriter:
    """Writes clean annotations: the `messages` shape with plain strings and a list of one image, which ms-swift loads.

    One row a line, as a JSON array where the name ends in `.json` and as JSON lines otherwise; the same rows into each
    of several files, if several are named. Used in a `with` block: the files are put in place, whole, at its end; a
    block that fails leaves what was there before.
    """

    def __init__(self, *paths: Path) -> None:
        self.paths, self.num_rows = paths, 0

    def __enter__(self) -> "AnnotationWriter":
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            temporaries = [stack.enter_context(atomic_write(path)) for path in self.paths]
            files = [stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in temporaries]
            self._arrays = [file for file, path in zip(files, self.paths, strict=True) if path.suffix == ".json"]
            self._lines = [file for file in files if file not in self._arrays]
            stack.callback(self._end_arrays)
            self._open = stack.pop_all()
        return self

    def write(self, sample: Sample, image: str | None = None) -> None:
        """Append one row. `image` replaces the key where the reader needs another path."""
        messages = [{"role": "user", "content": sample.question}]
        if sample.label:
            messages.append({"role": "assistant", "content": sample.label})
        row = _encode({"messages": messages, "images": [image or sample.image]})
        for file in self._arrays:
            file.write(f",\n{row}" if self.num_rows else f"[\n{row}")
        for file in self._lines:
            file.write(f"{row}\n")
        self.num_rows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _end_arrays(self) -> None:
        for file in self._arrays:
            file.write("\n]\n" if self.num_rows else "[]\n")


_encode = json.JSONEncoder(ensure_ascii=False).encode


def write_annotations(samples: Iterable[Sample], path: Path, *, image_root: Path | None = None) -> int:
    """Write samples with an `AnnotationWriter`. Returns the row count.

    With `image_root` the images are written as absolute paths below it; otherwise as their keys.
    """
    with AnnotationWriter(path) as writer:
        for sample in samples:
            writer.write(sample, None if image_root is None else str((image_root / sample.image).absolute()))
    return writer.num_rows
