"""Tables: what stands in the files, and that no name breaks out of a file, a cell or the terminal's width."""

import numpy as np
import pytest
from builders import random_detector

from dfbench.data.sources import DFBENCH, NUM_TEST
from dfbench.evaluation.bootstrap import METRICS
from dfbench.evaluation.evaluate import evaluate
from dfbench.evaluation.tables import (
    PAPER_COLUMN,
    STAND_IN_NOTE,
    TITLES,
    accuracy_lines,
    accuracy_table,
    all_tables,
    evasion_table,
    p_value,
    pair_table,
    percent,
    result_lines,
    reweighted_table,
    score_table,
    summary_table,
    with_interval,
)

SOURCES = {"LIVE": "A", "Kolors": "B"}


def row_of(table, *head):
    return next(row for row in table.rows if row[: len(head)] == list(head))


def test_numbers_as_texts():
    assert [percent(0.98414), percent(1), percent(float("nan"))] == ["98.41", "100.00", "–"]
    assert with_interval(0.98414, 0.9812, 0.9867) == "98.41 [98.12,98.67]"
    assert with_interval(0.99964, 0.9995, 1) == "99.96 [99.95,100]"
    assert with_interval(0.5, float("nan"), float("nan")) == "50.00"
    assert with_interval(float("nan"), float("nan"), float("nan")) == "–"
    assert [p_value(0.04567), p_value(0.00001)] == ["0.0457", "<0.0001"]


def test_every_metric_has_a_title():
    assert set(TITLES) == set(METRICS)


def test_rows_and_columns_of_each_table():
    detectors = [random_detector(name, SOURCES, seed=seed) for seed, name in enumerate(("x", "y", "MoA-DF"))]
    detectors[2].info = {"fusion": "mean_prob"}
    evaluation = evaluate(detectors, num_draws=30, prior=0.5)
    accuracy = accuracy_table(evaluation)
    assert accuracy.header == ["level", "group", "n", "x", "y", "MoA-DF"]
    assert [row[:3] for row in accuracy.rows] == [
        ["real distorted", "LIVE", "8"],
        ["AI-generated", "Kolors", "8"],
        ["category", "real distorted", "8"],
        ["category", "AI-generated", "8"],
        ["class", "real", "8"],
        ["class", "fake", "8"],
        ["overall", "all images", "16"],
    ]
    assert accuracy.sections == (2, 4, 6)
    assert [row[0] for row in summary_table(evaluation).rows] == [
        title for metric, title in TITLES.items() if metric != "auroc_vs_other_class"
    ]
    by_source = score_table(evaluation, ["source"], "by_source", "T")
    assert by_source.header[:6] == ["group", "detector", "n", "called A", "called B", "accuracy"]
    assert "balanced accuracy" not in by_source.header
    assert len(by_source.rows) == 6
    assert evasion_table(evaluation).header == ["source", "category", "rank", "n", "mean of 2", "x", "y", "MoA-DF"]
    assert [row[:2] for row in pair_table(evaluation).rows] == [["x", "y"], ["x", "MoA-DF"], ["y", "MoA-DF"]]
    assert [row[:2] for row in reweighted_table(evaluation).rows] == [
        ["real prior 50 %", n] for n in ("x", "y", "MoA-DF")
    ]
    for table in all_tables(evaluation):
        assert {len(row) for row in table.rows} == {len(table.header)}, table.name


def test_the_paper_stands_beside_a_run_on_the_real_test_set():
    sources = {source.name: source.label for source in DFBENCH}
    evaluation = evaluate([random_detector("MoA-DF", sources, num_images=NUM_TEST // 21)])
    table = accuracy_table(evaluation)
    assert table.header[-1] == PAPER_COLUMN
    assert row_of(table, "class", "real")[-1] == "98.41"
    assert row_of(table, "category", "AI-edited")[-1] == "97.05"
    assert row_of(table, "category", "AI-generated")[-1] == "99.92"
    assert [row[-1] for row in table.rows].count("–") == len(table.rows) - 3
    fewer = evaluate([random_detector("MoA-DF", sources, num_images=100)])
    assert PAPER_COLUMN not in accuracy_table(fewer).header


@pytest.mark.parametrize("num_detectors", [1, 4, 11])
@pytest.mark.parametrize("name", ["x", "a-detector-with-a-very-long-name-indeed-" * 3])
def test_terminal_tables_fit_100_columns(num_detectors, name):
    sources = SOURCES | {"a source with a name that is much too long for any table": "B"}
    detectors = [random_detector(f"{i}{name}", sources, seed=i) for i in range(num_detectors)]
    lines = result_lines(evaluate(detectors, num_draws=20))
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for i in range(num_detectors):
        assert text.count(f" {i}{name[:5]}") == 2


def test_four_detectors_with_intervals_stand_side_by_side():
    detectors = [
        random_detector(name, SOURCES, num_images=400) for name in ("qwen2.5", "internvl2.5", "internvl3", "MoA-DF")
    ]
    for x in detectors:
        x.frame["prob_B"] = np.where(x.frame["label"] == "B", 0.9, 0.1).astype(np.float32)
        x.frame.loc[5, "prob_B"] = np.float32(0.95)
        x.frame["prob_A"] = 1 - x.frame["prob_B"]
    lines = result_lines(evaluate(detectors, num_draws=50))
    assert sum(line.startswith("metric") for line in lines) == 1
    assert max(map(len, lines)) <= 100


def test_terminal_gets_no_control_characters():
    lines = accuracy_lines([random_detector("x\x1b[31m", {"\x1b]0;t\x07": "A"})])
    assert "\x1b" not in "".join(lines)
    assert "x?[31m" in "".join(lines)


def test_stand_ins_are_marked_and_explained():
    evaluation = evaluate([random_detector("x", {"demo_blur": "A", "LIVE": "A", "demo_sampler": "B"})])
    lines = result_lines(evaluation)
    assert any("demo_blur*" in line for line in lines)
    assert not any("LIVE*" in line for line in lines)
    assert f"* {STAND_IN_NOTE}" in lines
    for table in all_tables(evaluation):
        assert f"* {STAND_IN_NOTE}" in table.notes, table.name
    assert evasion_table(evaluation).rows[0][0] == "demo_sampler*"
    assert not any("stand-in" in line for line in result_lines(evaluate([random_detector("x", SOURCES)])))


def test_notes_count_what_is_left_out():
    x, y = random_detector("x", SOURCES), random_detector("y", SOURCES, num_images=7)
    x.num_errors, x.info, y.info = 3, {"fitted_on": "images of other sources"}, {"finished": False}
    x.frame.loc[0, "label"] = y.frame.loc[0, "label"] = ""
    assert accuracy_table(evaluate([x, y], partial=True)).notes == (
        "46.15 % of the 13 images are real",
        "images without a label, left out: 1",
        "x: 2 images left out that not every detector answered",
        "x: no answer for 3 images, which count nowhere",
        "x: fitted on images of other sources",
        "y: its run has not finished",
    )


def test_accuracy_lines_without_labels_count_the_answers():
    x = random_detector("x", SOURCES)
    x.frame["label"] = ""
    called_real = (x.frame["answer"] == "A").sum()
    assert accuracy_lines([x]) == [
        f"x: no labels; {called_real} images called A (real), {16 - called_real} called B (fake)"
    ]
