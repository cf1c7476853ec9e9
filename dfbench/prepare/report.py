"""What a preparation found: the table by source, `prepare_report.json`, the list of rows left out, and the verdict."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from dfbench.data.sources import CATALOGUE, DFBENCH, NUM_TEST, NUM_TRAIN, source_of
from dfbench.data.splits import TEST, TRAIN
from dfbench.errors import InputError
from dfbench.io import csv_text, write_json, write_text
from dfbench.prepare.reasons import Reason
from dfbench.prepare.validate import AnnotationFile
from dfbench.prepare.zips import Archive

REPORT_NAME, LEFT_OUT_NAME = "prepare_report.json", "prepare_left_out.csv"

MOST_KNOWN_ABSENT = 121
"""Most annotated rows without a file that users of the whole data set have reported (15 at the least)."""

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

_REMEDIES = {
    Reason.BROKEN: "Download the broken archives again and repeat the command",
    Reason.NO_ARCHIVE: "Download the missing archives, or name the sources you have with --sources",
    Reason.NOT_EXTRACTED: "Repeat the command without --verify_only",
    Reason.UNWRITABLE: "Move what lies in the images' way, or name another --image_root",
    Reason.UNDECODABLE: "Repeat the command without --verify_only and with sound archives: it extracts them again",
}
"""What to do where rows are left out for a reason; the first that applies is told."""

_NUM_SHOWN = 10


@dataclass
class Report:
    """Everything that a preparation has to tell.

    releases: for each shape of the annotations, its training and test file; the first shape makes the table.
    options: what was asked for, as far as it decides about the clean files' rows.
    truncated: images whose end is missing but that decode as far as they go (known with `--decode` only).
    written: path, rows, real and fake rows of each clean file.
    num_not_chosen: images that are there, or could be, but were not chosen for the subset.
    """

    releases: list[list[AnnotationFile]]
    options: dict[str, Any] = field(default_factory=dict)
    archives: list[Archive] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    num_not_chosen: int = 0

    @property
    def files(self) -> list[AnnotationFile]:
        """Those of all shapes, each once."""
        return list({file.path: file for release in self.releases for file in release}.values())


# ------------------------------------------------------------------------------------------------------------- terminal


def count_sources(release: Sequence[AnnotationFile]) -> dict[str, Counter[str]]:
    """source -> counts: `annotated`, `found`, and each of COLUMNS. Annotated is the sum of the others."""
    column_of = {reason: column for column, reasons in COLUMNS.items() for reason in reasons}
    counts: dict[str, Counter[str]] = {}
    for file in release:
        for source, number in file.count_usable().items():
            counts.setdefault(source, Counter())["found"] += number
        for row in file.left_out:
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
    lines += ["", *_describe_faults(release), *map(_describe_file, release)]
    lines += [f"no {name} annotations were found" for name in _absent_splits(release)]
    empty = "no row of use, so nothing is written; clean files of an earlier run are left as they were"
    lines += [f"{file.path}: {empty}" for file in report.files if not file.row_of]
    lines += [f"{archive.path}: {archive.error}" for archive in report.archives if archive.error]
    first = {file.split: file for file in release}
    for file in report.files:
        other = first.get(file.split, file)
        if file.count_usable() != other.count_usable():
            numbers = f"{len(file.row_of):,} of use, not {len(other.row_of):,}"
            lines.append(f"{file.path} has other images than {other.path}: {numbers}")
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


def _describe_faults(release: Iterable[AnnotationFile]) -> list[str]:
    faults = [(file.path, row) for file in release for row in file.left_out if row.reason not in HARMLESS]
    lines = [f"{path}, row {row.row}: {row.image} {row.reason}: {row.detail}" for path, row in faults[:_NUM_SHOWN]]
    return lines + ([f"... and {len(faults) - _NUM_SHOWN:,} more rows"] if len(faults) > _NUM_SHOWN else [])


def _describe_file(file: AnnotationFile) -> str:
    """Its number of rows, beside the release's where this looks like the release: all of its sources."""
    released = NUM_TRAIN if file.split == TRAIN else NUM_TEST
    present = {source_of(image) for image in (*file.row_of, *(row.image for row in file.left_out))}
    unreadable = sum(row.reason is Reason.BAD_ROW for row in file.left_out)
    return (
        f"{file.path}: {file.num_rows:,} rows"
        + (f" (released: {released:,})" if {source.name for source in DFBENCH} <= present else "")
        + (f", {unreadable:,} of them unreadable" if unreadable else "")
    )


# ---------------------------------------------------------------------------------------------------------------- files


def write_report(report: Report, folder: Path) -> Path:
    """Write `prepare_left_out.csv` and `prepare_report.json` into `folder`. Returns the latter's path.

    The same state of archives, images and annotations gives the same files, however many runs it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = ("file", "row", "image", "source", "reason", "detail")
    rows = (
        (str(file.path), str(row.row), row.image, source_of(row.image), str(row.reason), row.detail)
        for file in report.files
        for row in file.left_out
    )
    write_text(folder / LEFT_OUT_NAME, csv_text(chain([header], rows)))
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
                "path": str(file.path),
                "split": file.split,
                "rows": file.num_rows,
                "usable": len(file.row_of),
                "left_out": dict(Counter(row.reason.value for row in file.left_out)),
            }
            for file in report.files
        ],
        "released_rows": {TRAIN: NUM_TRAIN, TEST: NUM_TEST},
        "archives": [
            {"path": str(a.path), "bytes": a.num_bytes, "images": a.num_images, "skipped": a.num_skipped}
            | {"error": a.error}
            for a in report.archives
        ],
        "not_chosen": report.num_not_chosen,
        "truncated": report.truncated,
        "written": report.written,
        "left_out": LEFT_OUT_NAME,
    }


# -------------------------------------------------------------------------------------------------------------- verdict


def check_complete(report: Report, *, allowed_absent: int, where: object) -> None:
    """Raise InputError unless every annotated row that can be whole is, and both splits have some.

    where: see there for the rows. allowed_absent: how many images may be absent from archives that were read whole.
    """
    counts = max((_count_faults(release) for release in report.releases), key=Counter.total)
    absent = counts.pop(Reason.ABSENT, 0)
    remedy = next((remedy for reason, remedy in _REMEDIES.items() if counts[reason]), "See the list of rows left out")
    if absent > allowed_absent:
        if not counts.total():
            remedy = f"--allow_missing {absent} accepts what no archive has"
        counts[Reason.ABSENT] = absent
    if counts.total():
        found = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
        raise InputError(f"{where}: annotated rows have no usable image or label ({found}). {remedy}.")
    for file in report.files:
        if not file.row_of:
            reasons = Counter(row.reason for row in file.left_out)
            left_out = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
            raise InputError(
                f"{file.path}: no row of use among {file.num_rows:,}{f' ({left_out})' * bool(left_out)}. Download the "
                "annotations again, or name other --sources."
            )
    if absent_splits := _absent_splits(report.releases[0]):
        raise InputError(
            f"{where}: there are no released {' or '.join(absent_splits)} annotations. Add --download, or put "
            "img_train_shuffled.json(l) and img_test.json(l) into --archives."
        )


def _absent_splits(release: Iterable[AnnotationFile]) -> list[str]:
    present = {file.split for file in release}
    return [name for split, name in ((TRAIN, "training"), (TEST, "test")) if split not in present]


def _count_faults(release: Iterable[AnnotationFile]) -> Counter[Reason]:
    return Counter(row.reason for file in release for row in file.left_out if row.reason not in HARMLESS)
