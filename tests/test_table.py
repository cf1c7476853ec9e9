"""One table in three formats: aligned, escaped, and put in place whole."""

import pandas as pd
import pytest

from dfbench.table import Table, latex, markdown, safe_names, shortened, terminal_lines, write_csv, write_table

TABLE = Table(
    "t",
    "A title",
    ["level", "name", "n", "share"],
    [["source", "a", "1", "2.5"], ["source", "<b>|x|\n*y*", "10", "–"], ["overall", "100%_$&{}\\^~#", "11", "Δ"]],
    ("a note",),
    2,
    (2,),
    pd.DataFrame({"share": [0.025, None, 0.1]}),
)


def test_markdown_escapes_what_cells_bring():
    assert markdown(TABLE).splitlines() == [
        "# A title",
        "",
        "| level   | name                   |   n |   share |",
        "|:--------|:-----------------------|----:|--------:|",
        "| source  | a                      |   1 |     2.5 |",
        r"| source  | &lt;b>\|x\| \*y\*      |  10 |       – |",
        r"| overall | 100%\_\$&amp;{}\\^\~\# |  11 |       Δ |",
        "",
        "a note",
    ]


def test_latex_is_a_booktabs_tabular():
    assert latex(TABLE).splitlines() == [
        "% A title",
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r" level   & name          &   n &   share \\",
        r"\midrule",
        r" source  & a             &   1 &     2.5 \\",
        r" source  & \ensuremath{<}b\ensuremath{>}|x| *y*    &  10 &       -- \\",
        r"\midrule",
        r" overall & 100\%\_\$\&\{\}\textbackslash{}\^{}\textasciitilde{}\# &  11 &       $\Delta$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par{\footnotesize a note\par}",
    ]


def test_numbers_and_control_characters_in_names_stay_texts():
    """tabulate writes "1e5" as a number and takes a first cell of \\x01 for a rule, unless it is told otherwise."""
    table = Table("t", "T", ["name", "n"], [["\x01", "1"], ["1e5", "2"], ["007", "3"]])
    assert [line.split()[1] for line in markdown(table).splitlines()[4:]] == [r"\\x01", "1e5", "007"]
    assert [line.split()[0] for line in latex(table).splitlines()[5:8]] == [r"\textbackslash{}x01", "1e5", "007"]
    assert "| name" in markdown(Table("t", "T", ["name", "n"], []))


def test_terminal_aligns_text_left_and_numbers_right():
    assert terminal_lines(TABLE) == [
        "A title",
        "",
        "level    name            n  share",
        "source   a               1    2.5",
        "         <b>|x| *y*     10      –",
        "",
        "overall  100%_$&{}\\^~#  11      Δ",
        "",
        "a note",
    ]


@pytest.mark.parametrize("num_columns", [1, 7, 40])
def test_columns_that_do_not_fit_go_below(num_columns):
    header = ["name", *(f"column{i:02}" for i in range(num_columns))]
    lines = terminal_lines(Table("t", "T", header, [["x", *("1" for _ in range(num_columns))]]), width=60)
    assert max(map(len, lines)) <= 60
    for name in header[1:]:
        assert sum(name in line.split() for line in lines) == 1
    # The name takes 4 of the 60, each further column 2 + 8: five to a block.
    assert sum(line.startswith("name") for line in lines) == -(-num_columns // 5)


def test_long_notes_are_wrapped():
    table = Table("t", "T", ["name", "n"], [["x", "1"]], ("word " * 30,))
    assert terminal_lines(table, width=60)[-3:] == [
        " ".join(["word"] * 12),
        " ".join(["word"] * 12),
        " ".join(["word"] * 6),
    ]


def test_control_characters_and_long_texts_are_cut():
    assert shortened("a\x1b[1m\tb", 20) == r"a\x1b[1m b"
    assert shortened("x" * 30, 10) == "x" * 9 + "…"


def test_safe_names_stay_in_their_folder_and_differ():
    assert safe_names(["..", "a/b", "A?b", "", "edit", "Edit", "x" * 300, "../../etc", "größe-1.0+"]) == [
        "unnamed", "a_b", "A_b_2", "unnamed_2", "edit", "Edit_2", "x" * 100, "_.._etc", "größe-1.0+",
    ]  # fmt: skip


def test_files_are_put_in_place_whole(tmp_path):
    paths = write_table(TABLE, tmp_path / "tables")
    assert [path.name for path in paths] == ["t.csv", "t.md", "t.tex"]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["t.csv", "t.md", "t.tex"]
    assert paths[0].read_text() == "share\n0.025\n\n0.1\n".replace("\n\n", '\n""\n')
    (tmp_path / "x.csv").write_text("old")
    assert write_csv(tmp_path / "x.csv", TABLE.frame).read_text().startswith("share")
