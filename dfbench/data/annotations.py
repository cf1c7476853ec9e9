"""Annotation files: read every released shape, name what is wrong with a row, write clean ones.

Three shapes are read, as a JSON array (`.json`) or one object a line (`.jsonl`); the content decides, not the name:

- `{"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": "B"}],
  "images": "DFBench/Kolors/1.jpg"}`; `images` may also be a list of one.
- `{"image": "...", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": "B"}]}`; the released
  files have `[{"role": "assistant", "content": "B"}]` in place of the string.
- InternVL's data-set list, `{"name": {"annotation": "img_test.jsonl", ...}}`: the files it names, one after the other.
  A `root` other than the list's own folder is refused: image paths start from `--image_root`.

All are streamed: a file is never held whole in memory as Python objects.
"""

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dfbench.data.json_rows import Place, iter_rows
from dfbench.data.sources import LABELS, source_of
from dfbench.errors import InputError, shorten
from dfbench.io import atomic_write


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
    rows, problems = check_annotations(path)
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
    return [sample for _, sample in rows]


def check_annotations(path: Path | str) -> tuple[list[tuple[Place, Sample]], list[InputError]]:
    """(good samples with their places, in file order; one InputError for each bad row).

    Raises InputError where the file is unusable.
    """
    rows: list[tuple[Place, Sample]] = []
    problems: list[InputError] = []
    seen: dict[str, tuple[Place, Sample]] = {}
    for where, sample in iter_samples(path):
        if isinstance(sample, InputError):
            problems.append(sample)
            continue
        first_where, first = seen.setdefault(sample.image, (where, sample))
        if first is sample:
            rows.append((where, sample))
        elif first != sample:
            problems.append(
                InputError(
                    where,
                    found=f"image {sample.image} again, with another label or question than in {first_where}",
                    expected="one row an image",
                    remedy="remove one of the two rows",
                )
            )
    if not rows and not problems:
        raise InputError(
            path, found="no rows", expected="at least one annotated image", remedy="download the file again"
        )
    return rows, problems


def iter_samples(path: Path | str) -> Iterator[tuple[Place, Sample | InputError]]:
    """Each row's place and its Sample, or what is wrong with it; streamed, repeated rows included.

    Raises InputError where the file itself is unusable (see `iter_rows`).
    """
    for where, row in iter_rows(path):
        try:
            yield where, parse_row(row, where)
        except InputError as error:
            yield where, error


def parse_row(row: Any, where: object) -> Sample:
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
    if not isinstance(image, str) or not image.strip() or not _is_plain(image):
        raise _bad(where, f"the image {shorten(image)}", "one path as a string, without control characters")
    question = turns.get("user")
    if not isinstance(question, str) or not question.replace("<image>", "").strip() or _has_surrogate(question):
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


def _is_plain(text: str) -> bool:
    """No control character (a line break would break CSVs and logs) and nothing that UTF-8 cannot hold."""
    # The first test alone passes nearly every key; the second one is ten times as slow.
    return text.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _has_surrogate(text: str) -> bool:
    """Half of a UTF-16 pair, which JSON escapes can name and no file can be written with."""
    return not text.isascii() and any(unicodedata.category(character) == "Cs" for character in text)


_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def _turns(turns: Any, who: str, what: str, where: object) -> dict[str, Any]:
    """{"system" | "user" | "assistant": content}, whatever the two shapes call them."""
    if not isinstance(turns, list):
        raise _bad(where, f"the turns {shorten(turns)}", "a list of objects")
    found: dict[str, Any] = {}
    for turn in turns:
        if not isinstance(turn, dict):
            raise _bad(where, f"the turns {shorten(turns)}", "a list of objects")
        role = turn.get(who)
        name = _ROLES.get(role) if isinstance(role, str) else None
        if name is None or name in found:
            raise _bad(where, f"a turn of {shorten(role)}", "one question and one answer")
        found[name] = turn.get(what)
    return found


def _bad(where: object, found: str, expected: str) -> InputError:
    return InputError(where, found=found, expected=expected, remedy="correct or remove this row")


def split_validation(samples: Iterable[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """(training, validation), both in the given order; which images are held out, `choose_validation` says."""
    samples = list(samples)
    held_out = choose_validation((sample.image for sample in samples), fraction)
    training = [sample for sample in samples if sample.image not in held_out]
    return training, [sample for sample in samples if sample.image in held_out]


def choose_validation(images: Iterable[str], fraction: float) -> set[str]:
    """The images to hold out for validation: of each source the `fraction` (0 to 1) with the smallest hash of the key.

    The choice depends on the keys alone, so it survives shuffling. Each source with at least two images keeps one or
    more for training; a fraction above 0 takes at least one of each such source.
    """
    held_out: set[str] = set()
    if fraction > 0:
        by_source: dict[str, list[str]] = defaultdict(list)
        for image in images:
            by_source[source_of(image)].append(image)
        for members in by_source.values():
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            held_out.update(sorted(members, key=key_hash)[:count])
    return held_out


def key_hash(image: str) -> bytes:
    """A hash of an image's key that is the same on every machine, for stable random choices."""
    return hashlib.sha256(image.encode()).digest()


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
