"""The result tables: which there are, and the files and terminal lines they become.

Files (`write_tables`) hold shares from 0 to 1 in CSV and percent in Markdown. `tables/sources/<source>.csv` has the
images of one source with every detector's answer, as upstream's `process_results.py` splits its table.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dfbench.evaluation import Evaluation, evaluate
from dfbench.letters import answers
from dfbench.records import Detector

WIDTH = 100
"""Columns that a terminal table fits into."""

STAND_IN_NOTE = "stand-ins made for the demo; figures say nothing about DFBench"
STAND_IN_MARK = "*"

SUMMARY_METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "f1_fake": "F1 (fake)",
    "f1_real": "F1 (real)",
    "f1_macro": "F1 (macro)",
}


@dataclass(frozen=True)
class Table:
    """A table for people: texts, all `rows` as long as `header`. `notes` stand below it.

    num_text_columns: the first ones, aligned left; the others hold numbers.
    sections: rows that begin a new part.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()
    num_text_columns: int = 1
    sections: tuple[int, ...] = ()


def percent(share: float) -> str:
    """0.98414 -> "98.41"; an en dash where the number is not defined."""
    return "–" if pd.isna(share) else f"{100 * share:.2f}"


def accuracy_table(evaluation: Evaluation) -> Table:
    """Accuracy in percent, a column for each detector: every source, category and class, then the summary metrics."""
    scores, names = evaluation.scores, evaluation.names
    by_group = scores.pivot(index=["level", "group"], columns="detector", values="accuracy")
    rows, sections, level = [], [], "source"
    for group in evaluation.groups:
        if group.level != level:
            sections.append(len(rows))
            level = group.level
        name = group.name + (STAND_IN_MARK if group.level == "source" and group.name in evaluation.stand_ins else "")
        count = scores.loc[(scores["level"] == group.level) & (scores["group"] == group.name), "n"].iloc[0]
        head = [group.category if group.level == "source" else group.level, name]
        shares = by_group.loc[(group.level, group.name), names]
        rows.append([*head, f"{count:,}", *map(percent, shares)])
    overall = scores[scores["level"] == "overall"].set_index("detector").loc[names]
    for metric, title in SUMMARY_METRICS.items():
        rows.append(["overall", title, f"{len(evaluation.joined):,}", *map(percent, overall[metric])])
    header = ["level", "group", "n", *names]
    return Table("accuracy", "Accuracy in %", header, rows, notes(evaluation), 2, tuple(sections))


def score_table(evaluation: Evaluation, levels: Sequence[str], name: str, title: str) -> Table:
    """Counts and metrics of the groups of some levels, a row for each detector and group."""
    scores = evaluation.scores[evaluation.scores["level"].isin(levels)]
    rows = []
    for row in scores.itertuples():
        mark = STAND_IN_MARK if row.level == "source" and row.group in evaluation.stand_ins else ""
        counts = [f"{value:,}" for value in (row.n, row.count_A, row.count_B)]
        interval = f"{percent(row.accuracy)} [{percent(row.accuracy_low)}, {percent(row.accuracy_high)}]"
        shares = [percent(getattr(row, metric)) for metric in SUMMARY_METRICS]
        rows.append([row.group + mark, row.detector, *counts, interval, *shares])
    header = ["group", "detector", "n", "called A", "called B", "accuracy [95 %]", *SUMMARY_METRICS.values()]
    return Table(name, title, header, rows, notes(evaluation), 2)


def notes(evaluation: Evaluation) -> tuple[str, ...]:
    """What a reader must know about the images behind the figures."""
    lines = []
    if evaluation.stand_ins:
        lines.append(f"{STAND_IN_MARK} {STAND_IN_NOTE}")
    if evaluation.num_unlabelled:
        lines.append(f"{evaluation.num_unlabelled:,} images without a label are left out")
    for detector, lost in zip(evaluation.detectors, evaluation.num_lost, strict=True):
        if lost:
            lines.append(f"{lost:,} images of {detector.name} are left out: not every detector answered them")
        if detector.num_errors:
            lines.append(f"{detector.name} has no answer for {detector.num_errors:,} images: they count nowhere")
        if detector.info.get("finished") is False:
            lines.append(f"the run that writes {detector.name} has not finished")
    return tuple(lines)


# ----------------------------------------------------------------------------------------------------------------
# files


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write all tables below `folder`; returns their paths, those of `sources/` left out."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = evaluation.scores
    parts = {
        "by_source": (("source",), "Scores by source, in %"),
        "by_category": (("category",), "Scores by category, in %"),
        "overall": (("class", "overall"), "Scores on real, fake and all images, in %"),
    }
    paths = [_write_text(folder / "accuracy.md", markdown(accuracy_table(evaluation)))]
    wide = scores.pivot(index=["level", "group", "category", "n"], columns="detector", values="accuracy")
    order = pd.MultiIndex.from_frame(scores[["level", "group", "category", "n"]].drop_duplicates())
    paths.append(_write_csv(folder / "accuracy.csv", wide.loc[order, evaluation.names].reset_index()))
    for name, (levels, title) in parts.items():
        paths.append(_write_csv(folder / f"{name}.csv", scores[scores["level"].isin(levels)]))
        paths.append(_write_text(folder / f"{name}.md", markdown(score_table(evaluation, levels, name, title))))
    _write_sources(evaluation, folder / "sources")
    return paths


def _write_sources(evaluation: Evaluation, folder: Path) -> None:
    """One CSV for each source: image, label and each detector's answer and P(fake)."""
    folder.mkdir(exist_ok=True)
    joined = evaluation.joined
    frame = joined[["image", "label"]].copy()
    for i, name in enumerate(evaluation.names):
        frame[f"answer_{name}"] = answers(joined[[f"prob_A_{i}", f"prob_B_{i}"]].to_numpy())
        frame[f"prob_B_{name}"] = joined[f"prob_B_{i}"]
    groups = dict(list(frame.groupby(joined["source"], sort=False)))
    for source, name in zip(groups, safe_names(groups), strict=True):
        _write_csv(folder / f"{name}.csv", groups[source])


def safe_names(names: Iterable[str]) -> list[str]:
    """File names that stay in their folder, differ from each other whatever the case, and read like the names given."""
    safe: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.+-]", "_", name).strip(".")[:100] or "unnamed"
        taken = {other.lower() for other in safe}
        number = 2
        unique = stem
        while unique.lower() in taken:
            unique, number = f"{stem}_{number}", number + 1
        safe.append(unique)
    return safe


def _write_csv(path: Path, frame: pd.DataFrame) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    frame.to_csv(temporary, index=False, lineterminator="\n")
    temporary.replace(path)
    return path


def _write_text(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, its title above and its notes below."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(_escape_markdown(cell) for cell in cells) + " |"

    numbers = len(table.header) - table.num_text_columns
    rule = "|" + " --- |" * table.num_text_columns + " ---: |" * numbers
    body = [line(table.header), rule, *map(line, table.rows)]
    return "\n".join([f"# {table.title}", "", *body, *(f"\n{_escape_markdown(note)}" for note in table.notes)]) + "\n"


def _escape_markdown(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


# ----------------------------------------------------------------------------------------------------------------
# terminal


def terminal_lines(table: Table, width: int = WIDTH) -> list[str]:
    """The table in plain text, at most `width` columns wide: long names are cut, columns that do not fit go below."""
    fixed = table.num_text_columns + 1
    longest = max(8, (width - 45) // max(1, min(4, len(table.header) - fixed)) - 2)
    header = [shortened(cell, longest if i >= fixed else 20) for i, cell in enumerate(table.header)]
    rows = [[shortened(cell, 20) for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [table.title]
    for columns in _blocks(widths, fixed, width):
        aligned = _aligned([header, *rows], columns, widths, table.num_text_columns)
        for section in reversed(table.sections):
            aligned.insert(section + 1, "")
        lines += ["", *aligned]
    return [*lines, *(["", *table.notes] if table.notes else [])]


def _blocks(widths: Sequence[int], fixed: int, width: int) -> list[list[int]]:
    """Column numbers of each block: the fixed ones, then as many others as fit."""
    first = list(range(fixed))
    blocks, room = [], 0
    for i in range(fixed, len(widths)):
        if not blocks or room < widths[i] + 2:
            blocks.append(list(first))
            room = width - sum(widths[j] + 2 for j in first) + 2
        blocks[-1].append(i)
        room -= widths[i] + 2
    return blocks or [first]


def _aligned(rows: list[list[str]], columns: list[int], widths: Sequence[int], num_text_columns: int) -> list[str]:
    """Lines of text; a first cell that repeats the one above is left blank."""
    lines, above = [], ""
    for row in rows:
        cells = ["" if i == 0 and row[0] == above else row[i] for i in columns]
        above = row[0]
        padded = (
            cell.ljust(widths[i]) if i < num_text_columns else cell.rjust(widths[i])
            for i, cell in zip(columns, cells, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return lines


def shortened(text: str, limit: int) -> str:
    """One line without control characters, at most `limit` characters: hostile names must not drive the terminal."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def accuracy_lines(detectors: Sequence[Detector]) -> list[str]:
    """The accuracy table of some detectors as terminal lines; without any label, how often each answered A and B."""
    if all((detector.frame["label"] == "").all() for detector in detectors):
        return [
            f"{detector.name}: no labels; {(detector.frame['answer'] == 'A').sum():,} images called A (real), "
            f"{(detector.frame['answer'] == 'B').sum():,} called B (fake)"
            for detector in detectors
        ]
    return terminal_lines(accuracy_table(evaluate(detectors)))
