"""Table, report files and verdict of a preparation."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from dfbench.data.sources import DFBENCH, NUM_TEST, NUM_TRAIN
from dfbench.errors import InputError
from dfbench.prepare.reasons import Reason
from dfbench.prepare.report import (
    COLUMNS,
    Report,
    check_complete,
    count_sources,
    describe,
    format_table,
    write_report,
)
from dfbench.prepare.validate import AnnotationFile, LeftOut
from dfbench.prepare.zips import Archive


def left_out(row, image, reason):
    return LeftOut(row, image, reason, f"why {row}")


def release(*rows, usable=None, path="img_test.json", split="test"):
    counts = usable or {"Kolors": 10, "CLIVE": 5}
    images = [f"DFBench/{source}/{100 + i}.jpg" for source, count in counts.items() for i in range(count)]
    row_of = {image: 100 + i for i, image in enumerate(images)}
    return [AnnotationFile(Path(path), split, row_of, list(rows), len(row_of) + len(rows))]


def training(usable=None):
    return release(usable=usable, path="img_train.json", split="train")


KOLORS, CLIVE = "DFBench/Kolors/1.jpg", "DFBench/CLIVE/1.bmp"


def verdict(*reasons, allowed_absent=0):
    rows = [left_out(i, KOLORS, reason) for i, reason in enumerate(reasons, start=1)]
    check_complete(Report([release(*rows) + training()]), allowed_absent=allowed_absent, where="list.csv")


# ---------------------------------------------------------------------------------------------------------------- table


def test_every_row_with_an_image_stands_in_one_column():
    rows = [left_out(i, CLIVE, reason) for i, reason in enumerate(Reason) if reason is not Reason.BAD_ROW]
    counts = count_sources(release(*rows, left_out(99, "", Reason.BAD_ROW)))
    assert list(counts) == ["CLIVE", "Kolors"]  # the catalogue's order
    assert counts["CLIVE"]["annotated"] == 5 + len(Reason) - 1
    assert counts["CLIVE"]["annotated"] == counts["CLIVE"]["found"] + sum(counts["CLIVE"][column] for column in COLUMNS)
    assert counts["CLIVE"]["missing"] == 5
    assert counts["Kolors"] == {"found": 10, "annotated": 10}


def test_unknown_sources_come_last():
    assert list(count_sources(release(usable={"aardvark": 1, "sd3_medium": 1}))) == ["sd3_medium", "aardvark"]


def test_the_table_of_the_whole_benchmark_fits_100_columns():
    numbers = Counter(annotated=25_983, found=25_983) + Counter(dict.fromkeys(COLUMNS, 45))
    table = format_table({source.name: numbers for source in DFBENCH})
    lines = table.splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 100
    assert lines[-1].split()[:3] == ["all", "545,643", "545,643"]


def test_zeros_are_dashes():
    last = format_table(count_sources(release())).splitlines()[-1]
    assert last.split() == ["all", "15", "15"] + ["-"] * len(COLUMNS)


# ------------------------------------------------------------------------------------------------------------- terminal


def test_the_terminal_names_the_first_rows_that_are_at_fault_and_counts_the_others():
    rows = [left_out(i, KOLORS, Reason.ABSENT) for i in range(1, 14)] + [left_out(14, CLIVE, Reason.JUNK)]
    text = describe(Report([release(*rows)]))
    assert "img_test.json, row 10: DFBench/Kolors/1.jpg absent from its archive: why 10" in text
    assert "row 11" not in text
    assert "... and 3 more rows" in text
    assert "why 14" not in text


def test_columns_are_explained_where_they_count_something():
    assert "twice: repeated rows" in describe(Report([release(left_out(1, KOLORS, Reason.REPEATED))]))
    assert "repeated rows" not in describe(Report([release()]))


def test_the_released_count_is_shown_where_all_sources_are_there():
    whole = {source.name: 1 for source in DFBENCH}
    assert f"img_test.json: 21 rows (released: {NUM_TEST:,})" in describe(Report([release(usable=whole)]))
    assert f"img_train.json: 21 rows (released: {NUM_TRAIN:,})" in describe(Report([training(whole)]))
    assert "released" not in describe(Report([release()]))


def test_shapes_that_disagree_are_told():
    other = release(usable={"Kolors": 9, "CLIVE": 5}, path="img_test.jsonl")
    assert "img_test.jsonl has other images than img_test.json: 14 of use, not 15" in describe(
        Report([release(), other])
    )
    assert "other images" not in describe(Report([release(), release(path="img_test.jsonl")]))


def test_broken_archives_truncated_images_and_unreadable_rows_are_told():
    archives = [Archive(Path("LIVE.zip"), 100, error="100 bytes"), Archive(Path("CLIVE.zip"), 200)]
    faulty = release(left_out(3, "", Reason.BAD_ROW))
    report = Report([faulty], archives=archives, truncated=[KOLORS], num_not_chosen=1234)
    text = describe(report)
    assert "LIVE.zip: 100 bytes" in text
    assert "CLIVE.zip" not in text
    assert f"1 images lack their end but decode as far as they go, such as {KOLORS}" in text
    assert "1,234 images were not chosen" in text
    assert "16 rows, 1 of them unreadable" in text


# ---------------------------------------------------------------------------------------------------------------- files


def test_report_files(tmp_path):
    rows = [left_out(2, KOLORS, Reason.ABSENT), left_out(7, "", Reason.BAD_ROW)]
    written = [{"path": "clean.json", "rows": 15, "real": 5, "fake": 10}]
    first = release(*rows)
    second = release(rows[0], path="img_test.jsonl")
    report = Report([first, first, second], options={"seed": 3}, written=written)
    path = write_report(report, tmp_path / "new")
    assert sorted(file.name for file in path.parent.iterdir()) == ["prepare_left_out.csv", "prepare_report.json"]
    with (path.parent / "prepare_left_out.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    # A file that two model folders read is listed once.
    assert [(row["file"], row["row"], row["source"], row["reason"]) for row in listed] == [
        ("img_test.json", "2", "Kolors", "absent from its archive"),
        ("img_test.json", "7", "", "unreadable row"),
        ("img_test.jsonl", "2", "Kolors", "absent from its archive"),
    ]
    content = json.loads(path.read_text())
    assert content["sources"]["Kolors"] | {"found": 10, "missing": 1} == content["sources"]["Kolors"]
    assert content["sources"]["Kolors"]["label"] == "B"
    assert content["total"]["annotated"] == 16
    assert content["released_rows"] == {"train": 436506, "test": 109131}
    assert content["annotations"][0]["left_out"] == {"absent from its archive": 1, "unreadable row": 1}
    assert content["written"] == written
    assert content["options"] == {"seed": 3}


# -------------------------------------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize("reasons", [[], [Reason.JUNK], [Reason.REPEATED, Reason.IN_BOTH]])
def test_complete(reasons):
    verdict(*reasons)


@pytest.mark.parametrize("reason", [r for r in Reason if r not in (Reason.JUNK, Reason.REPEATED, Reason.IN_BOTH)])
def test_incomplete(reason):
    with pytest.raises(InputError, match=rf"list.csv: annotated rows have no usable image or label \(1 {reason}\)"):
        verdict(reason)


def test_absent_images_are_accepted_up_to_a_number():
    verdict(*[Reason.ABSENT] * 3, allowed_absent=3)
    with pytest.raises(InputError, match=r"4 absent.*--allow_missing 4"):
        verdict(*[Reason.ABSENT] * 4, allowed_absent=3)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (Reason.BROKEN, "Download the broken archives again"),
        (Reason.NO_ARCHIVE, "--sources"),
        (Reason.NOT_EXTRACTED, "without --verify_only"),
        (Reason.UNWRITABLE, "another --image_root"),
        (Reason.UNDECODABLE, "it extracts them again"),
        (Reason.AMBIGUOUS, "See the list"),
    ],
)
def test_what_is_not_absent_is_never_accepted(reason, remedy):
    with pytest.raises(InputError, match=remedy) as caught:
        verdict(reason, Reason.ABSENT, allowed_absent=100)
    assert "absent" not in str(caught.value)


def test_training_and_test_annotations_are_both_needed():
    for files, absent in ((release(), "training"), (training(), "test")):
        assert f"no {absent} annotations were found" in describe(Report([files]))
        with pytest.raises(InputError, match=f"no released {absent} annotations.*--download"):
            check_complete(Report([files]), allowed_absent=100, where="list.csv")
    assert "annotations were found" not in describe(Report([release() + training()]))


def test_the_worst_release_decides():
    clean, faulty = release(), release(left_out(1, KOLORS, Reason.ABSENT))
    with pytest.raises(InputError, match="1 absent"):
        check_complete(Report([clean, faulty]), allowed_absent=0, where="list.csv")
