"""A table for people as Markdown, LaTeX and terminal lines, and its files.

Names in tables come from files of others: each format escapes them in its own way.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

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

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(_escape_markdown(cell) for cell in cells) + " |"

    numbers = len(table.header) - table.num_text_columns
    rule = "|" + " --- |" * table.num_text_columns + " ---: |" * numbers
    body = [line(table.header), rule, *map(line, table.rows)]
    return "\n".join([f"# {table.title}", "", *body, *(f"\n{_escape_markdown(note)}" for note in table.notes)]) + "\n"


def _escape_markdown(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "Δ": r"$\Delta$",
    "κ": r"$\kappa$",
}


def latex(table: Table) -> str:
    """The table as a LaTeX `tabular` with the rules of booktabs; a section begins with a rule."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(_escape_latex(cell) for cell in cells) + r" \\"

    numbers = len(table.header) - table.num_text_columns
    body = [line(row) for row in table.rows]
    for section in reversed(table.sections):
        body.insert(section, r"\midrule")
    lines = [
        f"% {_escape_latex(table.title)}",
        rf"\begin{{tabular}}{{{'l' * table.num_text_columns}{'r' * numbers}}}",
        r"\toprule",
        line(table.header),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par{{\footnotesize {_escape_latex(note)}\par}}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


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
    """One line without control characters, at most `limit` characters: hostile names must not drive the terminal."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
