"""The folder of tables: what stands in the files, and that no name leads out of it."""

import csv

import numpy as np
from builders import random_detector
from dfbench.evaluation.table_files import TABLE_NAMES, write_tables

from dfbench.evaluation.evaluate import Evaluation, evaluate
from dfbench.evaluation.tables import all_tables, evasion_table, result_lines

SOURCES = {"LIVE": "A", "Kolors": "B"}


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_all(evaluation: Evaluation, folder) -> None:
    write_tables(evaluation, folder, all_tables(evaluation))


def test_csv_files_hold_shares_and_counts(tmp_path):
    x = random_detector("x", SOURCES)
    x.frame["prob_B"] = np.float32([0.25] * 6 + [0.75] * 10)
    x.frame["prob_A"] = 1 - x.frame["prob_B"]
    write_all(evaluate([x]), tmp_path)
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
    assert read_csv(tmp_path / "evasion.csv")[0]["mean"] == "0.0"
    summary = {row["metric"]: row["x"] for row in read_csv(tmp_path / "summary.csv")}
    assert summary["f1_fake"] == str(16 / 18)


def test_every_table_is_written_in_three_formats(tmp_path):
    detectors = [random_detector("x", SOURCES), random_detector("y", SOURCES, seed=1)]
    write_all(evaluate(detectors, num_draws=20, prior=0.5), tmp_path)
    names = {"summary", "accuracy", "by_source", "by_category", "overall", "evasion", "pairs", "reweighted"}
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("csv", "md", "tex")}


def test_one_csv_for_each_source(tmp_path):
    write_all(evaluate([random_detector("x", SOURCES), random_detector("y", SOURCES, seed=1)]), tmp_path)
    assert sorted(path.name for path in (tmp_path / "sources").iterdir()) == ["Kolors.csv", "LIVE.csv"]
    rows = read_csv(tmp_path / "sources" / "LIVE.csv")
    assert list(rows[0]) == ["image", "label", "answer_x", "prob_B_x", "answer_y", "prob_B_y"]
    assert [row["image"] for row in rows] == [f"DFBench/LIVE/{i}.jpg" for i in range(8)]


def test_hostile_source_names_stay_in_their_folder(tmp_path):
    sources = {"..": "A", "a\nb": "B", "A?b": "B", "": "A"}
    write_all(evaluate([random_detector("x", sources, num_images=2)]), tmp_path / "tables")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
    stems = sorted(path.stem for path in (tmp_path / "tables" / "sources").iterdir())
    assert stems == ["A_b", "a_b_2", "unnamed", "unnamed_2"]


def test_detectors_may_be_called_like_columns(tmp_path):
    names = ("n", "mean", "metric", "level", "x", "x_low", "source")
    evaluation = evaluate([random_detector(name, SOURCES, seed=seed) for seed, name in enumerate(names)], num_draws=5)
    write_all(evaluation, tmp_path)
    with (tmp_path / "accuracy.csv").open(newline="") as file:
        header, first, *_ = csv.reader(file)
    assert header == ["level", "group", "category", "n", *names]
    accuracy = evaluation.scores.query("group == 'LIVE'")["accuracy"]
    assert [float(cell) for cell in first[4:]] == accuracy.tolist()
    assert evasion_table(evaluation).header[5:] == list(names)
    result_lines(evaluation)


def test_what_an_earlier_run_left_goes_and_files_of_others_stay(tmp_path):
    write_all(
        evaluate(
            [random_detector("x", SOURCES | {"edit": "B"}), random_detector("y", SOURCES | {"edit": "B"})], prior=0.5
        ),
        tmp_path,
    )
    (tmp_path / "pairs.txt").write_text("mine")
    (tmp_path / "sources" / "mine.csv").write_text("image,note\n")
    write_all(evaluate([random_detector("x", SOURCES)]), tmp_path)
    assert sorted(path.name for path in (tmp_path / "sources").iterdir()) == ["Kolors.csv", "LIVE.csv", "mine.csv"]
    assert (tmp_path / "pairs.txt").exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert not {"pairs.csv", "pairs.tex", "reweighted.md"} & names
    assert "evasion.tex" in names


def test_every_table_has_a_known_name():
    evaluation = evaluate([random_detector("x", SOURCES), random_detector("y", SOURCES)], prior=0.5)
    assert {table.name for table in all_tables(evaluation)} == set(TABLE_NAMES) - {"audit_correlations"}
