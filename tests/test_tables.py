"""Tables: what stands in the files, and that no name breaks out of a file, a cell or the terminal's width."""

import csv

import numpy as np
import pandas as pd
import pytest

from dfbench.evaluation import evaluate
from dfbench.records import Detector
from dfbench.tables import (
    STAND_IN_NOTE,
    Table,
    accuracy_lines,
    accuracy_table,
    markdown,
    percent,
    safe_names,
    terminal_lines,
    write_tables,
)


def detector(name: str, sources: dict[str, str], num_images: int = 8, seed: int = 0) -> Detector:
    """Random answers on `num_images` of each source, given as {source: label}."""
    rng = np.random.default_rng(seed)
    images = [f"DFBench/{source}/{i}.jpg" for source in sources for i in range(num_images)]
    frame = pd.DataFrame({"image": images, "label": [label for label in sources.values() for _ in range(num_images)]})
    frame["prob_B"] = rng.random(len(frame)).astype(np.float32)
    frame["prob_A"] = np.float32(1) - frame["prob_B"]
    frame["answer"] = np.where(frame["prob_A"] > frame["prob_B"], "A", "B")
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    return Detector(name, frame)


SOURCES = {"LIVE": "A", "Kolors": "B"}


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_percent():
    assert [percent(0.98414), percent(1), percent(float("nan"))] == ["98.41", "100.00", "–"]


def test_csv_files_hold_shares_and_counts(tmp_path):
    x = detector("x", SOURCES)
    x.frame["prob_B"] = np.float32([0.25] * 6 + [0.75] * 10)
    x.frame["prob_A"] = 1 - x.frame["prob_B"]
    write_tables(evaluate([x]), tmp_path)
    live = read_csv(tmp_path / "by_source.csv")[0]
    assert [live[key] for key in ("detector", "group", "n", "count_A", "correct", "accuracy", "balanced_accuracy")] == [
        "x", "LIVE", "8", "6", "6", "0.75", "",
    ]  # fmt: skip
    assert [row["group"] for row in read_csv(tmp_path / "by_category.csv")] == ["real distorted", "AI-generated"]
    overall = read_csv(tmp_path / "overall.csv")
    assert [(row["group"], row["accuracy"]) for row in overall] == [
        ("real", "0.75"),
        ("fake", "1.0"),
        ("all images", "0.875"),
    ]
    assert overall[2]["balanced_accuracy"] == "0.875"
    wide = read_csv(tmp_path / "accuracy.csv")
    assert [(row["group"], row["x"]) for row in wide][:2] == [("LIVE", "0.75"), ("Kolors", "1.0")]


def test_one_csv_for_each_source(tmp_path):
    write_tables(evaluate([detector("x", SOURCES), detector("y", SOURCES, seed=1)]), tmp_path)
    assert sorted(path.name for path in (tmp_path / "sources").iterdir()) == ["Kolors.csv", "LIVE.csv"]
    rows = read_csv(tmp_path / "sources" / "LIVE.csv")
    assert list(rows[0]) == ["image", "label", "answer_x", "prob_B_x", "answer_y", "prob_B_y"]
    assert [row["image"] for row in rows] == [f"DFBench/LIVE/{i}.jpg" for i in range(8)]


def test_hostile_source_names_stay_in_their_folder(tmp_path):
    sources = {"..": "A", "a\nb": "B", "A?b": "B", "": "A"}
    write_tables(evaluate([detector("x", sources, num_images=2)]), tmp_path / "tables")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
    assert safe_names(["..", "a/b", "A?b", "", "edit", "Edit", "x" * 300]) == [
        "unnamed", "a_b", "A_b_2", "unnamed_2", "edit", "Edit_2", "x" * 100,
    ]  # fmt: skip


def test_markdown_escapes_what_cells_bring():
    text = markdown(Table("t", "T", ["name", "n"], [["<b>|x|\n*y*", "1"]], ("a note",)))
    assert text.splitlines() == [
        "# T",
        "",
        "| name | n |",
        "| --- | ---: |",
        r"| &lt;b>\|x\| \*y\* | 1 |",
        "",
        "a note",
    ]


@pytest.mark.parametrize("num_detectors", [1, 4, 11])
@pytest.mark.parametrize("name", ["x", "a-detector-with-a-very-long-name-indeed-" * 3])
def test_terminal_tables_fit_100_columns(num_detectors, name):
    sources = SOURCES | {"a source with a name that is much too long for any table": "B"}
    detectors = [detector(f"{i}{name}", sources, seed=i) for i in range(num_detectors)]
    lines = terminal_lines(accuracy_table(evaluate(detectors)))
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for i in range(num_detectors):
        assert f" {i}{name[:5]}" in text


def test_terminal_gets_no_control_characters():
    lines = accuracy_lines([detector("x\x1b[31m", {"\x1b]0;t\x07": "A"})])
    assert "\x1b" not in "".join(lines)
    assert "x?[31m" in "".join(lines)


def test_stand_ins_are_marked_and_explained():
    evaluation = evaluate([detector("x", {"demo_blur": "A", "LIVE": "A", "Kolors": "B"})])
    lines = terminal_lines(accuracy_table(evaluation))
    assert any("demo_blur*" in line for line in lines)
    assert not any("LIVE*" in line for line in lines)
    assert lines[-1] == f"* {STAND_IN_NOTE}"
    assert not any("stand-in" in line for line in terminal_lines(accuracy_table(evaluate([detector("x", SOURCES)]))))


def test_notes_count_what_is_left_out():
    x, y = detector("x", SOURCES), detector("y", SOURCES, num_images=7)
    x.num_errors, y.info = 3, {"finished": False}
    x.frame.loc[0, "label"] = y.frame.loc[0, "label"] = ""
    assert accuracy_table(evaluate([x, y], partial=True)).notes == (
        "1 images without a label are left out",
        "2 images of x are left out: not every detector answered them",
        "x has no answer for 3 images: they count nowhere",
        "the run that writes y has not finished",
    )


def test_accuracy_lines_without_labels_count_the_answers():
    x = detector("x", SOURCES)
    x.frame["label"] = ""
    called_real = (x.frame["answer"] == "A").sum()
    assert accuracy_lines([x]) == [
        f"x: no labels; {called_real} images called A (real), {16 - called_real} called B (fake)"
    ]
