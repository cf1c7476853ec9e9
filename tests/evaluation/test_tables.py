"""Tables: what stands in the files and the terminal, and that no name breaks out of a file, a cell or a width."""

import csv

import numpy as np
import pytest
from builders import random_detector

from dfbench.data.sources import DFBENCH, NUM_TEST
from dfbench.evaluation.evaluate import evaluate
from dfbench.evaluation.metrics import METRICS
from dfbench.evaluation.tables import (
    PAPER_COLUMN,
    STAND_IN_NOTE,
    TABLES,
    accuracy_lines,
    make_tables,
    p_value,
    register,
    result_lines,
    write_tables,
)

SOURCES = {"LIVE": "A", "Kolors": "B"}


def row_of(table, *head):
    return next(row for row in table.rows if row[: len(head)] == list(head))


def test_p_values_as_texts():
    assert [p_value(0.04567), p_value(0.00001)] == ["0.0457", "<0.0001"]


def test_rows_and_columns_of_each_table():
    detectors = [random_detector(name, SOURCES, seed=seed) for seed, name in enumerate(("x", "y", "MoA-DF"))]
    detectors[2].info = {"fusion": "mean_prob"}
    evaluation = evaluate(detectors, num_resamples=30, prior=0.5)
    tables = make_tables(evaluation)
    accuracy = tables["accuracy"]
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
    assert [row[0] for row in tables["summary"].rows] == [
        metric.title for key, metric in METRICS.items() if key != "auroc_vs_other_class"
    ]
    by_source = tables["by_source"]
    assert by_source.header[:6] == ["group", "detector", "n", "predicted A", "predicted B", "accuracy"]
    assert "balanced accuracy" not in by_source.header
    assert len(by_source.rows) == 6
    assert tables["false_negative_rate"].header == ["source", "category", "rank", "n", "mean of 2", "x", "y", "MoA-DF"]
    assert [row[:2] for row in tables["pairs"].rows] == [["x", "y"], ["x", "MoA-DF"], ["y", "MoA-DF"]]
    assert [row[:2] for row in tables["reweighted"].rows] == [["real prior 50 %", n] for n in ("x", "y", "MoA-DF")]
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.header)}, table.name


def test_the_paper_stands_beside_a_run_on_the_real_test_set():
    sources = {source.name: source.label for source in DFBENCH}
    evaluation = evaluate([random_detector("MoA-DF", sources, num_images=NUM_TEST // 21)])
    table = make_tables(evaluation)["accuracy"]
    assert table.header[-1] == PAPER_COLUMN
    assert row_of(table, "class", "real")[-1] == "98.41"
    assert row_of(table, "category", "AI-edited")[-1] == "97.05"
    assert row_of(table, "category", "AI-generated")[-1] == "99.92"
    assert [row[-1] for row in table.rows].count("–") == len(table.rows) - 3
    fewer = evaluate([random_detector("MoA-DF", sources, num_images=100)])
    assert PAPER_COLUMN not in make_tables(fewer)["accuracy"].header


@pytest.mark.parametrize("num_detectors", [1, 4, 11])
@pytest.mark.parametrize("name", ["x", "a-detector-with-a-very-long-name-indeed-" * 3])
def test_terminal_tables_fit_100_columns(num_detectors, name):
    sources = SOURCES | {"a source with a name that is much too long for any table": "B"}
    detectors = [random_detector(f"{i}{name}", sources, seed=i) for i in range(num_detectors)]
    lines = result_lines(evaluate(detectors, num_resamples=20))
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
    lines = result_lines(evaluate(detectors, num_resamples=50))
    assert sum(line.startswith("metric") for line in lines) == 1
    assert max(map(len, lines)) <= 100


def test_terminal_gets_no_control_characters():
    lines = accuracy_lines([random_detector("x\x1b[31m", {"\x1b]0;t\x07": "A"})])
    assert "\x1b" not in "".join(lines)
    assert r"x\x1b[31m" in "".join(lines)


def test_stand_ins_are_marked_and_explained():
    evaluation = evaluate([random_detector("x", {"demo_blur": "A", "LIVE": "A", "demo_sampler": "B"})])
    lines = result_lines(evaluation)
    assert any("demo_blur*" in line for line in lines)
    assert not any("LIVE*" in line for line in lines)
    assert f"* {STAND_IN_NOTE}" in lines
    for table in make_tables(evaluation).values():
        assert f"* {STAND_IN_NOTE}" in table.notes, table.name
    assert make_tables(evaluation)["false_negative_rate"].rows[0][0] == "demo_sampler*"
    assert not any("stand-in" in line for line in result_lines(evaluate([random_detector("x", SOURCES)])))


def test_notes_count_what_is_left_out():
    x, y = random_detector("x", SOURCES), random_detector("y", SOURCES, num_images=7)
    x.num_errors, x.info, y.info = 3, {"fitted_on": "images of other sources"}, {"finished": False}
    x.frame.loc[0, "label"] = y.frame.loc[0, "label"] = ""
    assert make_tables(evaluate([x, y], partial=True))["accuracy"].notes == (
        "y: its run has not finished",
        "46.15 % of the 13 images are real",
        "images without a label, left out: 1",
        "x: 2 images left out that not every detector answered",
        "x: no answer for 3 images, which count nowhere",
        "x: fitted on images of other sources",
    )


def test_labels_that_contradict_the_catalogue_are_warned_of_and_counted_by_label():
    """LIVE is real distorted, Flick8k real pristine, Kolors generated, and `mine` is not in the catalogue."""
    x = random_detector("x", {"LIVE": "B", "Flick8k": "A", "Kolors": "B", "mine": "B"})
    x.frame.loc[x.frame["image"] == "DFBench/Kolors/3.jpg", "label"] = "A"
    warning = "labels contradict the catalogue of sources: LIVE (8 labelled B), Kolors (1 labelled A)"
    evaluation = evaluate([x])
    table = make_tables(evaluation)["accuracy"]
    assert table.notes[0] == warning
    assert warning in result_lines(evaluation)
    assert [row[:3] for row in table.rows] == [
        ["real pristine", "Flick8k", "8"],
        ["other fake", "LIVE", "8"],
        ["mixed", "Kolors", "8"],
        ["other fake", "mine", "8"],
        ["category", "real pristine", "8"],
        ["category", "AI-generated", "7"],
        ["category", "other real", "1"],
        ["category", "other fake", "16"],
        ["class", "real", "9"],
        ["class", "fake", "23"],
        ["overall", "all images", "32"],
    ]
    assert not any("catalogue" in line for line in result_lines(evaluate([random_detector("x", SOURCES)])))


def test_the_paper_does_not_stand_beside_other_labels():
    sources = {source.name: source.label for source in DFBENCH} | {"CLIVE": "B"}
    evaluation = evaluate([random_detector("MoA-DF", sources, num_images=NUM_TEST // 21)])
    assert PAPER_COLUMN not in make_tables(evaluation)["accuracy"].header


def test_a_fusion_of_fewer_agents_than_the_papers_says_so():
    moa_df = random_detector("MoA-DF", SOURCES)
    for names, note in (("abc", ()), ("ab", ("MoA-DF: fused from 2 agents, and the paper's from 3",))):
        moa_df.info = {"fusion": "mean_prob", "agents": [{"name": name} for name in names]}
        assert make_tables(evaluate([moa_df]))["accuracy"].notes[1:] == note


def test_accuracy_lines_without_labels_count_the_answers():
    x = random_detector("x", SOURCES)
    x.frame["label"] = ""
    predicted_real = (x.frame["answer"] == "A").sum()
    assert accuracy_lines([x]) == [
        f"x: no labels; {predicted_real} images predicted A (real), {16 - predicted_real} predicted B (fake)"
    ]


# Files.


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_files_hold_shares_and_counts(tmp_path):
    x = random_detector("x", SOURCES)
    x.frame["prob_B"] = np.float32([0.25] * 6 + [0.75] * 10)
    x.frame["prob_A"] = 1 - x.frame["prob_B"]
    write_tables(evaluate([x]), tmp_path)
    live = read_csv(tmp_path / "by_source.csv")[0]
    assert [live[key] for key in ("detector", "group", "n", "count_A", "correct", "accuracy", "balanced_accuracy")] == [
        "x", "LIVE", "8", "6", "6", "0.75", "",
    ]  # fmt: skip
    assert [row["group"] for row in read_csv(tmp_path / "by_category.csv")] == ["real distorted", "AI-generated"]
    overall = read_csv(tmp_path / "overall.csv")
    found = [(row["group"], row["accuracy"]) for row in overall]
    assert found == [("real", "0.75"), ("fake", "1.0"), ("all images", "0.875")]
    assert overall[2]["balanced_accuracy"] == "0.875"
    assert [(row["group"], row["x"]) for row in read_csv(tmp_path / "accuracy.csv")][:2] == [
        ("LIVE", "0.75"),
        ("Kolors", "1.0"),
    ]
    assert read_csv(tmp_path / "false_negative_rate.csv")[0]["mean"] == "0.0"
    summary = {row["metric"]: row["x"] for row in read_csv(tmp_path / "summary.csv")}
    assert summary["f1_fake"] == str(16 / 18)


def test_every_table_is_written_in_three_formats(tmp_path):
    detectors = [random_detector("x", SOURCES), random_detector("y", SOURCES, seed=1)]
    write_tables(evaluate(detectors, num_resamples=20, prior=0.5), tmp_path)
    names = {"summary", "accuracy", "by_source", "by_category", "overall", "false_negative_rate", "pairs", "reweighted"}
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("csv", "md", "tex")}


def test_one_csv_for_each_source(tmp_path):
    write_tables(evaluate([random_detector("x", SOURCES), random_detector("y", SOURCES, seed=1)]), tmp_path)
    assert sorted(path.name for path in (tmp_path / "sources").iterdir()) == ["Kolors.csv", "LIVE.csv"]
    rows = read_csv(tmp_path / "sources" / "LIVE.csv")
    assert list(rows[0]) == ["image", "label", "answer_x", "prob_B_x", "answer_y", "prob_B_y"]
    assert [row["image"] for row in rows] == [f"DFBench/LIVE/{i}.jpg" for i in range(8)]


def test_hostile_source_names_stay_in_their_folder(tmp_path):
    sources = {"..": "A", "a\nb": "B", "A?b": "B", "": "A"}
    write_tables(evaluate([random_detector("x", sources, num_images=2)]), tmp_path / "tables")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
    stems = sorted(path.stem for path in (tmp_path / "tables" / "sources").iterdir())
    assert stems == ["A_b", "a_b_2", "unnamed", "unnamed_2"]


def test_detectors_may_be_called_like_columns(tmp_path):
    names = ("n", "mean", "metric", "level", "x", "x_low", "source")
    evaluation = evaluate(
        [random_detector(name, SOURCES, seed=seed) for seed, name in enumerate(names)], num_resamples=5
    )
    write_tables(evaluation, tmp_path)
    with (tmp_path / "accuracy.csv").open(newline="") as file:
        header, first, *_ = csv.reader(file)
    assert header == ["level", "group", "category", "n", *names]
    accuracy = evaluation.scores.query("group == 'LIVE'")["accuracy"]
    assert [float(cell) for cell in first[4:]] == accuracy.tolist()
    assert make_tables(evaluation)["false_negative_rate"].header[5:] == list(names)
    result_lines(evaluation)


def test_what_an_earlier_run_left_goes_and_files_of_others_stay(tmp_path):
    write_tables(
        evaluate(
            [random_detector("x", SOURCES | {"edit": "B"}), random_detector("y", SOURCES | {"edit": "B"})], prior=0.5
        ),
        tmp_path,
    )
    (tmp_path / "pairs.txt").write_text("mine")
    (tmp_path / "sources" / "mine.csv").write_text("image,note\n")
    write_tables(evaluate([random_detector("x", SOURCES)]), tmp_path)
    assert sorted(path.name for path in (tmp_path / "sources").iterdir()) == ["Kolors.csv", "LIVE.csv", "mine.csv"]
    assert (tmp_path / "pairs.txt").exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert not {"pairs.csv", "pairs.tex", "reweighted.md"} & names
    assert "false_negative_rate.tex" in names


# A table of one's own.


@pytest.fixture
def dummy(monkeypatch):
    monkeypatch.setattr("dfbench.evaluation.tables.TABLES", dict(TABLES))

    @register("dummy", "A dummy of {n} images", "scores", in_terminal=True, has_intervals=False)
    def dummy_table(evaluation):
        return {"header": ["detector", "images"], "rows": [["x", "16"]], "frame": evaluation.overall[["detector", "n"]]}


def test_a_registered_table_is_written_and_printed(dummy, tmp_path):
    evaluation = evaluate([random_detector("x", SOURCES)], num_resamples=2)
    write_tables(evaluation, tmp_path)
    assert (tmp_path / "dummy.csv").read_text() == "detector,n\nx,16\n"
    assert (tmp_path / "dummy.md").read_text().startswith("# A dummy of 16 images\n")
    assert (tmp_path / "dummy.tex").exists()
    lines = result_lines(evaluation)
    assert "A dummy of 16 images" in lines
    assert lines[-1] == "50.00 % of the 16 images are real"


def test_a_name_and_a_section_are_checked():
    for name, section in (("pairs", "scores"), ("new", "nowhere")):
        with pytest.raises(ValueError, match=f"the table {name} is registered already, or there is no section"):
            register(name, "T", section)(lambda evaluation: {})
