"""A table for people as Markdown, LaTeX and terminal lines, and its files.

Names in tables come from files of others: each format escapes them in its own way.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import LATEX_ESCAPE_RULES, SEPARATING_LINE, tabulate

from dfbench.errors import plain_line
from dfbench.io import write_csv, write_text

WIDTH = 100
"""Columns that a terminal table fits into."""

SUFFIXES = (".csv", ".md", ".tex")
"""Of the files that a table becomes."""


@dataclass(frozen=True)
class Table:
    """Texts in rows, all as long as `header`, and the same as numbers.

    name: of its files. num_text_columns: the first ones, aligned left; the others hold numbers. notes: stand below it.
    sections: rows that begin a new part. frame: what its CSV holds, shares from 0 to 1.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()
    num_text_columns: int = 1
    sections: tuple[int, ...] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write `<name>.csv`, `.md` and `.tex` into `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_csv(folder / f"{table.name}.csv", table.frame),
        write_text(folder / f"{table.name}.md", markdown(table)),
        write_text(folder / f"{table.name}.tex", latex(table)),
    ]


def safe_names(names: Iterable[str]) -> list[str]:
    """File names that stay in their folder, differ from each other whatever the case, and read like the names given."""
    safe: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.+-]", "_", name).strip(".")[:100] or "unnamed"
        taken = {other.lower() for other in safe}
        unique, number = stem, 2
        while unique.lower() in taken:
            unique, number = f"{stem}_{number}", number + 1
        safe.append(unique)
    return safe


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, its title above and its notes below."""
    rows = [[_escape_markdown(cell) for cell in row] for row in [table.header, *table.rows]]
    lines = [f"# {table.title}", "", _tabulate(table, "pipe", rows)]
    return "\n".join([*lines, *(f"\n{_escape_markdown(note)}" for note in table.notes)]) + "\n"


def latex(table: Table) -> str:
    """The table as a LaTeX `tabular` with the rules of booktabs; a section begins with a rule."""
    # tabulate takes a certain control character for a rule
    rows: list[Any] = [[plain_line(cell) for cell in row] for row in [table.header, *table.rows]]
    for section in reversed(table.sections):
        rows.insert(section + 1, SEPARATING_LINE)
    notes = [rf"\par{{\footnotesize {_escape_latex(note)}\par}}" for note in table.notes]
    lines = [f"% {_escape_latex(table.title)}", _tabulate(table, "latex_booktabs", rows), *notes]
    return "\n".join(lines).replace("–", "--").replace("Δ", r"$\Delta$") + "\n"


def _tabulate(table: Table, form: str, rows: list[Any]) -> str:
    """rows: the header is the first. Cells stay as they are, whatever they look like."""
    align = ["left"] * table.num_text_columns + ["right"] * (len(table.header) - table.num_text_columns)
    return tabulate(rows[1:], rows[0], form, disable_numparse=True, colalign=align if len(rows) > 1 else None)


def _escape_markdown(text: str) -> str:
    text = plain_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _escape_latex(text: str) -> str:
    return "".join(LATEX_ESCAPE_RULES.get(character, character) for character in plain_line(text))


def terminal_lines(table: Table, width: int = WIDTH) -> list[str]:
    """The table in plain text, at most `width` columns wide: long names are cut, columns that do not fit go below."""
    fixed = table.num_text_columns
    numbers = max(1, min(4, len(table.header) - fixed))
    longest = max(8, (width - 40) // numbers - 2)
    header = [shortened(cell, longest if i >= fixed else 20) for i, cell in enumerate(table.header)]
    rows = [[shortened(cell, 20) for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [shortened(table.title, width)]
    for columns in _blocks(widths, fixed, width):
        aligned = _aligned([header, *rows], columns, widths, fixed)
        for section in reversed(table.sections):
            aligned.insert(section + 1, "")
        lines += ["", *aligned]
    notes = [line for note in table.notes for line in textwrap.wrap(shortened(note, 1000), width)]
    return [*lines, *(["", *notes] if notes else [])]


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
    """A `plain_line` of at most `limit` characters."""
    text = plain_line(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
