"""What a preparation found: rows left out and why, the table by source, `prepare_report.json`, and the verdict."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from dfbench.data.sources import CATALOGUE, DFBENCH, NUM_TEST, NUM_TRAIN, source_of
from dfbench.errors import InputError
from dfbench.io import atomic_write, write_json
from dfbench.prepare.hub import TEST, TRAIN

REPORT_NAME, LEFT_OUT_NAME = "prepare_report.json", "prepare_left_out.csv"

MOST_KNOWN_ABSENT = 121
"""Most annotated rows without a file that users of the whole data set have reported (15 at the least)."""


class Reason(str, Enum):
    """Why a row is left out of the clean annotations."""

    BAD_ROW = "unreadable row"
    JUNK = "junk"
    REPEATED = "repeated row"
    CONTRADICTED = "label contradicts an earlier row"
    MISLABELLED = "label contradicts the catalogue"
    IN_BOTH = "training row that is also a test row"
    UNSAFE = "unsafe path"
    ABSENT = "absent from its archive"
    NO_ARCHIVE = "no archive"
    BROKEN = "broken archive"
    REFUSED = "refused archive member"
    NOT_EXTRACTED = "not extracted"
    UNWRITABLE = "cannot be written"
    AMBIGUOUS = "ambiguous"
    UNDECODABLE = "undecodable"

    __str__ = str.__str__


HARMLESS = frozenset((Reason.JUNK, Reason.REPEATED, Reason.IN_BOTH))
"""Rows that no image could make whole; leaving them out is all there is to do."""

COLUMNS = {
    "missing": (Reason.ABSENT, Reason.NO_ARCHIVE, Reason.BROKEN, Reason.NOT_EXTRACTED, Reason.UNWRITABLE),
    "ambiguous": (Reason.AMBIGUOUS,),
    "undecodable": (Reason.UNDECODABLE,),
    "refused": (Reason.REFUSED, Reason.UNSAFE),
    "junk": (Reason.JUNK,),
    "mislabelled": (Reason.MISLABELLED, Reason.CONTRADICTED),
    "both": (Reason.IN_BOTH,),
    "twice": (Reason.REPEATED,),
}
"""Columns of the printed table after `annotated` and `found`; every reason but an unreadable row stands in one."""

LEGEND = {
    "refused": "a path or an archive member that is not safe to write",
    "mislabelled": "label contradicts the catalogue or an earlier row",
    "both": "training rows that are in the test file too",
    "twice": "repeated rows",
}
"""What the printed columns mean that do not say it themselves."""

_NUM_SHOWN = 10


class LeftOut(NamedTuple):
    """One annotation row that is not in the clean files. `row` counts from 1; an unreadable row has no `image`."""

    row: int
    image: str
    reason: Reason
    detail: str


@dataclass
class FileSummary:
    """One released annotation file: its rows (of the sources asked for), how many are kept, and the others."""

    path: Path
    split: str
    num_rows: int
    kept_by_source: Counter[str]
    left_out: list[LeftOut]


@dataclass
class Report:
    """Everything that a preparation has to tell.

    releases: for each pair of training and test file that was read, their summaries; the first pair makes the table.
    options: what was asked for, as far as it decides about the clean files' rows.
    archives: name, bytes, images, files skipped and error of each zip file.
    truncated: images whose end is missing but that decode as far as they go (known with `--decode` only).
    written: path, rows, real and fake rows of each clean file.
    num_not_chosen: images that are there, or could be, but were not chosen for the subset.
    """

    releases: list[list[FileSummary]]
    options: dict[str, Any] = field(default_factory=dict)
    archives: list[dict[str, Any]] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    num_not_chosen: int = 0


def count_sources(release: Sequence[FileSummary]) -> dict[str, Counter[str]]:
    """source -> counts: `annotated`, `found`, and each of COLUMNS. Annotated is the sum of the others."""
    column_of = {reason: column for column, reasons in COLUMNS.items() for reason in reasons}
    counts: dict[str, Counter[str]] = {}
    for summary in release:
        for source, number in summary.kept_by_source.items():
            counts.setdefault(source, Counter())["found"] += number
        for row in summary.left_out:
            if row.image:
                counts.setdefault(source_of(row.image), Counter())[column_of[row.reason]] += 1
    for numbers in counts.values():
        numbers["annotated"] = numbers.total()
    order = {name: place for place, name in enumerate(CATALOGUE)}
    return {source: counts[source] for source in sorted(counts, key=lambda name: (order.get(name, len(order)), name))}


def format_table(counts: dict[str, Counter[str]]) -> str:
    """The table for the terminal, at most 100 characters wide for the sources of the catalogue; zeros are dashes."""
    columns = ("annotated", "found", *COLUMNS)
    total = sum(counts.values(), Counter())
    header = ["source", *columns]
    rows = [
        [source, *(f"{numbers[column]:,}" if numbers[column] else "-" for column in columns)]
        for source, numbers in [*counts.items(), ("all", total)]
    ]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [" ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (header, *rows)]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def describe(report: Report) -> str:
    """What the terminal shows: the table, the rows read beside the released ones, archives in trouble, clean files."""
    release = report.releases[0]
    counts = count_sources(release)
    lines = [format_table(counts)]
    lines += [f"{name}: {text}" for name, text in LEGEND.items() if any(numbers[name] for numbers in counts.values())]
    lines += ["", *_describe_faults(release)]
    for summary in release:
        unreadable = sum(row.reason is Reason.BAD_ROW for row in summary.left_out)
        lines.append(
            f"{summary.path}: {summary.num_rows:,} rows{_released_count(summary)}"
            + (f", {unreadable:,} of them unreadable" if unreadable else "")
        )
    lines += [f"no {name} annotations were found" for name in _absent_splits(release)]
    lines += [f"{archive['path']}: {archive['error']}" for archive in report.archives if archive["error"]]
    lines += _differences(report.releases)
    if report.truncated:
        number, example = len(report.truncated), report.truncated[0]
        lines.append(f"{number:,} images lack their end but decode as far as they go, such as {example}")
    if report.num_not_chosen:
        lines.append(f"{report.num_not_chosen:,} images were not chosen for this subset")
    lines += [
        f"{file['path']}: {file['rows']:,} rows, {file['real']:,} real and {file['fake']:,} fake"
        for file in report.written
    ]
    return "\n".join(lines)


def _describe_faults(release: Sequence[FileSummary]) -> list[str]:
    faults = [(file.path, row) for file in release for row in file.left_out if row.reason not in HARMLESS]
    lines = [f"{path}: row {row.row}: {row.image} {row.reason}: {row.detail}" for path, row in faults[:_NUM_SHOWN]]
    return lines + ([f"... and {len(faults) - _NUM_SHOWN:,} more rows"] if len(faults) > _NUM_SHOWN else [])


def _released_count(summary: FileSummary) -> str:
    """How many rows the release has, where this looks like the release: all of its sources."""
    sources = {source.name for source in DFBENCH}
    present = set(summary.kept_by_source) | {source_of(row.image) for row in summary.left_out}
    return f" (released: {NUM_TRAIN if summary.split == TRAIN else NUM_TEST:,})" if sources <= present else ""


def _differences(releases: Sequence[Sequence[FileSummary]]) -> list[str]:
    """A line for each released file whose usable rows differ in number from those of its like in the first release."""
    first = {summary.split: summary for summary in releases[0]}
    return [
        f"{summary.path} has other images than {first[summary.split].path}: {summary.kept_by_source.total():,} of use, "
        f"not {first[summary.split].kept_by_source.total():,}"
        for release in releases[1:]
        for summary in release
        if summary.split in first and summary.kept_by_source != first[summary.split].kept_by_source
    ]


def write_report(report: Report, folder: Path) -> Path:
    """Write `prepare_left_out.csv` and `prepare_report.json` into `folder`. Returns the latter's path.

    The same state of archives, images and annotations gives the same files, however many runs it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / LEFT_OUT_NAME) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "row", "image", "source", "reason", "detail"))
        for summary in {summary.path: summary for release in report.releases for summary in release}.values():
            for row in summary.left_out:
                writer.writerow((summary.path, row.row, row.image, source_of(row.image), row.reason, row.detail))
    return write_json(folder / REPORT_NAME, _as_json(report))


def _as_json(report: Report) -> dict[str, Any]:
    counts = count_sources(report.releases[0])
    columns = ("annotated", "found", *COLUMNS)
    return {
        "options": report.options,
        "sources": {
            source: {"label": CATALOGUE[source].label if source in CATALOGUE else None}
            | {column: numbers[column] for column in columns}
            for source, numbers in counts.items()
        },
        "total": {column: sum(numbers[column] for numbers in counts.values()) for column in columns},
        "annotations": [
            {
                "path": str(summary.path),
                "split": summary.split,
                "rows": summary.num_rows,
                "usable": summary.kept_by_source.total(),
                "left_out": dict(Counter(row.reason.value for row in summary.left_out)),
            }
            for release in report.releases
            for summary in release
        ],
        "released_rows": {TRAIN: NUM_TRAIN, TEST: NUM_TEST},
        "archives": report.archives,
        "not_chosen": report.num_not_chosen,
        "truncated": report.truncated,
        "written": report.written,
        "left_out": LEFT_OUT_NAME,
    }


def check_complete(report: Report, *, allowed_absent: int, where: object) -> None:
    """Raise InputError (its place being `where`) unless every annotated row that can be whole is, in both splits.

    allowed_absent: how many images may be absent from archives that were read whole.
    """
    counts = max((_count_faults(release) for release in report.releases), key=Counter.total)
    absent = counts.pop(Reason.ABSENT, 0)
    if absent > allowed_absent:
        counts[Reason.ABSENT] = absent
    if counts.total():
        found = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
        only_absent = set(counts) == {Reason.ABSENT}
        raise InputError(
            where,
            found=f"rows without a usable image ({found})",
            expected="an image and a label for each annotated row",
            remedy=f"--allow_missing {absent} accepts what no archive has" if only_absent else _remedy(counts),
        )
    if absent_splits := _absent_splits(report.releases[0]):
        raise InputError(
            where,
            found=f"no released {' or '.join(absent_splits)} annotations",
            expected="both training and test annotations",
            remedy="add --download, or put img_train_shuffled.json(l) and img_test.json(l) into --archives",
        )


def _absent_splits(release: Iterable[FileSummary]) -> list[str]:
    present = {summary.split for summary in release}
    return [name for split, name in ((TRAIN, "training"), (TEST, "test")) if split not in present]


def _count_faults(release: Iterable[FileSummary]) -> Counter[Reason]:
    return Counter(row.reason for summary in release for row in summary.left_out if row.reason not in HARMLESS)


def _remedy(counts: Counter[Reason]) -> str:
    if counts[Reason.BROKEN]:
        return "download the broken archives again and repeat the command"
    if counts[Reason.NO_ARCHIVE]:
        return "download the missing archives, or name the sources you have with --sources"
    if counts[Reason.NOT_EXTRACTED]:
        return "repeat the command without --verify_only"
    if counts[Reason.UNWRITABLE]:
        return "move what lies in the images' way, or name another --image_root"
    if counts[Reason.UNDECODABLE]:
        return "repeat the command, without --verify_only and with sound archives: it extracts damaged images again"
    return "see the list of rows left out"
