"""Annotation files: read every released shape, name what is wrong with a row, write clean ones.

Three shapes are read, as a JSON array (`.json`) or one object a line (`.jsonl`); the content decides, not the
extension:

- `{"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": "B"}], "images":
  "DFBench/Kolors/1.jpg"}`;
  `images` may also be a list of one.
- `{"image": "...", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": "B"}]}`; the released
  files have
  `[{"role": "assistant", "content": "B"}]` in place of the string.
- InternVL's data-set list, `{"name": {"root": "..", "annotation": "img_test.jsonl", ...}}`: the files it names, one
  after the other.

Both are streamed: a file is never held whole in memory as Python objects.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dfbench.errors import InputError, shorten
from dfbench.sources import LABELS, source_of

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


def read_annotations(path: Path | str) -> list[Sample]:
    """All samples of an annotation file, in file order.

    A row that repeats an earlier one (same image, label and question) is dropped. Raises InputError, naming file and
    row, for a missing or empty file, broken JSON, a row of neither shape, a label other than A or B, and an image that
    stands in two rows that differ. The first bad row is named, the others counted.
    """
    samples, problems = check_annotations(path)
    if problems:
        if len(problems) == 1:
            raise problems[0]
        first = problems[0]
        raise InputError(
            first.where,
            found=first.found,
            expected=first.expected,
            remedy=f"{first.remedy} ({len(problems) - 1} more bad rows in this file)",
        )
    return samples


def check_annotations(path: Path | str) -> tuple[list[Sample], list[InputError]]:
    """(good samples in file order, one InputError for each bad row). Raises InputError where the file is unusable."""
    samples: list[Sample] = []
    problems: list[InputError] = []
    seen: dict[str, tuple[str, Sample]] = {}
    for where, row in iter_rows(path):
        try:
            sample = parse_row(row, where)
        except InputError as error:
            problems.append(error)
            continue
        first_where, first = seen.setdefault(sample.image, (where, sample))
        if first is sample:
            samples.append(sample)
        elif first != sample:
            problems.append(
                InputError(
                    where,
                    found=f"image {sample.image} again, with another label or question than in {first_where}",
                    expected="one row an image",
                    remedy="remove one of the two rows",
                )
            )
    if not samples and not problems:
        raise InputError(
            path, found="no rows", expected="at least one annotated image", remedy="download the file again"
        )
    return samples, problems


def parse_row(row: Any, where: str) -> Sample:
    """One decoded row of either shape as a Sample. Raises InputError, its place being `where`."""
    if not isinstance(row, dict):
        raise _bad(where, shorten(row), "an object with `messages` and `images`, or `image` and `conversations`")
    if "messages" in row:
        image, turns = row.get("images"), _turns(row["messages"], "role", "content", where)
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
    elif "conversations" in row:
        image, turns = row.get("image"), _turns(row["conversations"], "from", "value", where)
    else:
        raise _bad(where, f"the keys {sorted(row)}", "`messages` and `images`, or `image` and `conversations`")
    if not isinstance(image, str) or not image.strip():
        raise _bad(where, f"the image {shorten(image)}", "one path as a string")
    question = turns.get("user")
    if not isinstance(question, str) or not question.replace("<image>", "").strip():
        raise _bad(where, f"the question {shorten(question)}", "a user (human) turn with text")
    if question.count("<image>") > 1:
        raise _bad(
            where, f"{question.count('<image>')} times <image> in the question", "at most one: each row has one image"
        )
    answer = turns.get("assistant", "")
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict):
        answer = answer[0].get("content")
    if not isinstance(answer, str) or (answer.strip() and answer.strip() not in LABELS):
        raise _bad(where, f"the label {shorten(answer)}", "A (real) or B (generated)")
    return Sample(normalize_key(image), answer.strip(), question)


def normalize_key(image: str) -> str:
    """An image path as a key: forward slashes, no leading `./`."""
    key = image.strip().replace("\\", "/")
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key


def _turns(turns: Any, who: str, what: str, where: str) -> dict[str, Any]:
    """{"system" | "user" | "assistant": content}, whatever the two shapes call them."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _bad(where, f"the turns {shorten(turns)}", "a list of objects")
    names = {"human": "user", "gpt": "assistant"}
    found: dict[str, Any] = {}
    for turn in turns:
        name = names.get(str(turn.get(who)), str(turn.get(who)))
        if name in found or name not in ("system", "user", "assistant"):
            raise _bad(where, f"a turn of {shorten(turn.get(who))}", "one question and one answer")
        found[name] = turn.get(what)
    return found


def _bad(where: str, found: str, expected: str) -> InputError:
    return InputError(where, found=found, expected=expected, remedy="correct or remove this row")


def iter_rows(path: Path | str) -> Iterator[tuple[str, Any]]:
    """(place, decoded JSON value) of each row, streamed. `place` reads `FILE: row N`, counting from 1 (lines in a
    `.jsonl`).

    Raises InputError for a missing file, a file that is not UTF-8 and broken JSON.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(path, found=what, expected="an annotation file", remedy="download it or name another one")
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = _first_character(file)
            if first == "[":
                yield from _iter_array(file, path)
            elif first == "{" and (listed := _dataset_list(file)):
                for entry in listed:
                    yield from iter_rows(path.parent / entry)
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


def _dataset_list(file: IO[str]) -> list[str]:
    """The annotation paths of InternVL's data-set list, relative to it; empty where the file is something else.

    Only a small file can be one: a first line that is a whole row means JSON lines.
    """
    head = file.read(_CHUNK)
    file.seek(0)
    try:
        content = json.loads(head)
    except json.JSONDecodeError:
        return []
    entries = list(content.values())
    if not entries or not all(
        isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in entries
    ):
        return []
    return [entry["annotation"] for entry in entries]


def _iter_lines(file: IO[str], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            where = f"{path}: row {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(where, error.msg, line) from None


def _iter_array(file: IO[str], path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of one JSON array, decoded out of a sliding buffer: the released .json files are one line of 100s of MB."""
    decoder = json.JSONDecoder()
    buffer, number, at_end = "", 0, False
    position = 0

    def refill() -> bool:
        nonlocal buffer, position, at_end
        more = file.read(_CHUNK)
        at_end = not more
        buffer, position = buffer[position:] + more, 0
        return not at_end

    def skip(characters: str) -> str:
        """Move past the given characters; the first other one, or "" at the end of the file."""
        nonlocal position
        while True:
            while position < len(buffer) and buffer[position] in characters:
                position += 1
            if position < len(buffer):
                return buffer[position]
            if not refill():
                return ""

    skip(_WHITESPACE)
    position += 1  # the opening bracket, seen by the caller
    next_character = skip(_WHITESPACE)
    while next_character != "]":
        number += 1
        where = f"{path}: row {number}"
        while True:
            try:
                row, end = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError as error:
                # Either the row is broken, or the buffer ends inside it: only more text can tell.
                if len(buffer) - position > _LONGEST_ROW or not refill():
                    raise _broken(where, error.msg, buffer) from None
                continue
            break
        position = end
        yield where, row
        next_character = skip(_WHITESPACE)
        if next_character == ",":
            position += 1
            next_character = skip(_WHITESPACE)
        elif next_character != "]":
            raise _broken(where, "no comma or closing bracket after it", buffer[position : position + 40])


def _broken(where: str, reason: str, text: str) -> InputError:
    return InputError(
        where,
        found=f"broken JSON ({reason}) at {shorten(text.strip(), 60)}",
        expected="JSON",
        remedy="download the file again",
    )


def split_validation(samples: Iterable[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """(training, validation), both in the given order: of each source the `fraction` with the smallest hash of the key.

    The choice depends on the keys alone, so it survives shuffling. Each source with at least two samples keeps one or
    more for training; a fraction above 0 takes at least one of each such source.
    """
    by_source: dict[str, list[str]] = defaultdict(list)
    samples = list(samples)
    for sample in samples:
        by_source[sample.source].append(sample.image)
    held_out: set[str] = set()
    if fraction > 0:
        for images in by_source.values():
            count = min(max(1, round(fraction * len(images))), len(images) - 1)
            held_out.update(sorted(images, key=key_hash)[:count])
    training = [sample for sample in samples if sample.image not in held_out]
    return training, [sample for sample in samples if sample.image in held_out]


def key_hash(image: str) -> bytes:
    """A hash of an image's key that is the same on every machine, for stable random choices."""
    return hashlib.sha256(image.encode()).digest()


def write_annotations(samples: Iterable[Sample], path: Path, *, image_root: Path | None = None) -> int:
    """Write samples as JSON lines in the `messages` shape with plain strings, which ms-swift loads. Returns the row
    count.

    With `image_root` the images are written as absolute paths below it; otherwise as their keys.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for sample in samples:
            count += 1
            image = sample.image if image_root is None else str((image_root / sample.image).absolute())
            messages = [{"role": "user", "content": sample.question}]
            if sample.label:
                messages.append({"role": "assistant", "content": sample.label})
            file.write(json.dumps({"messages": messages, "images": [image]}, ensure_ascii=False) + "\n")
    temporary.replace(path)
    return count
