"""Rows of a released file: which can be used, and why the others cannot."""

from pathlib import Path

import pytest

from dfbench.data.annotations import Sample
from dfbench.prepare.reasons import Reason
from dfbench.prepare.validate import AnnotationFile, LeftOut, is_safe_target, validate

QUESTION = "<image>Real?"


def rows(*pairs):
    return [Sample(image, label, QUESTION) for image, label in pairs]


def reasons(found):
    return [(row.row, row.image, row.reason) for row in found.left_out]


def test_rows_keep_their_order_and_number(tmp_path, write_rows):
    path = write_rows(tmp_path / "a.json", rows(("DFBench/Kolors/2.jpg", "B"), ("DFBench/CLIVE/1.bmp", "A")))
    label_of = {}
    found = validate(path, "test", label_of)
    assert list(found.row_of.items()) == [("DFBench/Kolors/2.jpg", 1), ("DFBench/CLIVE/1.bmp", 2)]
    assert label_of == {"DFBench/Kolors/2.jpg": "B", "DFBench/CLIVE/1.bmp": "A"}
    assert (found.num_rows, found.left_out) == (2, [])


def test_rows_that_cannot_be_used(tmp_path, write_rows):
    samples = rows(
        ("DFBench/Kolors/1.jpg", "B"),
        ("DFBench/Kolors/._1.jpg", "B"),
        ("DFBench/Flick8k/captions.txt", "A"),
        ("DFBench/Kolors/1.jpg", "B"),
        ("DFBench/Kolors/2.jpg", "A"),
        ("DFBench/mine/1.jpg", "A"),
        ("DFBench/mine/1.jpg", "B"),
        ("DFBench/mine/2.jpg", ""),
        ("../outside/1.jpg", "B"),
        ("DFBench/Kolors/9.jpg", "B"),
        ("DFBench/Kolors/8.jpg", "C"),
    )
    found = validate(write_rows(tmp_path / "a.jsonl", samples), "train", {}, test_images={"DFBench/Kolors/9.jpg"})
    assert list(found.row_of) == ["DFBench/Kolors/1.jpg", "DFBench/mine/1.jpg"]
    assert reasons(found) == [
        (2, "DFBench/Kolors/._1.jpg", Reason.JUNK),
        (3, "DFBench/Flick8k/captions.txt", Reason.JUNK),
        (4, "DFBench/Kolors/1.jpg", Reason.REPEATED),
        (5, "DFBench/Kolors/2.jpg", Reason.MISLABELLED),
        (7, "DFBench/mine/1.jpg", Reason.CONTRADICTED),
        (8, "DFBench/mine/2.jpg", Reason.MISLABELLED),
        (9, "../outside/1.jpg", Reason.UNSAFE),
        (10, "DFBench/Kolors/9.jpg", Reason.IN_BOTH),
        (11, "", Reason.BAD_ROW),
    ]
    assert found.num_rows == 11
    assert "label B" not in found.left_out[3].detail
    assert found.left_out[3].detail == "label A, where B is right"
    assert found.left_out[2].detail == "as in row 1"
    assert found.left_out[8].detail == "the label is 'C'; expected A (real) or B (generated)"


def test_files_may_not_contradict_each_other(tmp_path, write_rows):
    label_of = {}
    validate(write_rows(tmp_path / "a.json", rows(("DFBench/mine/1.jpg", "A"))), "test", label_of)
    found = validate(write_rows(tmp_path / "a.jsonl", rows(("DFBench/mine/1.jpg", "B"))), "test", label_of)
    assert reasons(found) == [(1, "DFBench/mine/1.jpg", Reason.CONTRADICTED)]


def test_other_sources_are_not_looked_at(tmp_path, write_rows):
    samples = rows(("DFBench/Kolors/1.jpg", "B"), ("DFBench/CLIVE/1.bmp", "B"), ("DFBench/LIVE/._1.bmp", "A"))
    found = validate(write_rows(tmp_path / "a.json", samples), "train", {}, sources={"Kolors"})
    assert (list(found.row_of), found.left_out, found.num_rows) == (["DFBench/Kolors/1.jpg"], [], 1)


def test_rows_of_faulty_images_are_left_out_in_the_order_of_rows():
    absent, broken = LeftOut(3, "DFBench/Kolors/3.jpg", Reason.ABSENT, "gone"), LeftOut(2, "", Reason.BAD_ROW, "text")
    row_of = {"DFBench/Kolors/1.jpg": 1, absent.image: absent.row, "DFBench/CLIVE/4.bmp": 4}
    file = AnnotationFile(Path("a.json"), "test", row_of, [broken])
    file.leave_out({absent.image: (Reason.ABSENT, "gone"), "DFBench/elsewhere/1.jpg": (Reason.ABSENT, "gone")})
    assert file.left_out == [broken, absent]
    assert file.row_of == {"DFBench/Kolors/1.jpg": 1, "DFBench/CLIVE/4.bmp": 4}
    assert file.count_usable() == {"Kolors": 1, "CLIVE": 1}


@pytest.mark.parametrize(
    "image", ["DFBench/Kolors/000002.jpg", "DFBench/LIVE/gblur/img 1.BMP", "DFBench/S/img1", "DFBench/S/a.b.jpg"]
)
def test_safe_targets(image):
    assert is_safe_target(image)


@pytest.mark.parametrize(
    "image",
    [
        "/DFBench/Kolors/1.jpg",
        "DFBench/../scripts/1.jpg",
        "DFBench/Kolors/../../1.jpg",
        "../DFBench/Kolors/1.jpg",
        "DFBench/Kolors/..",
        "DFBench/1.jpg",
        "DFBench//1.jpg",
        "DFBench/./1.jpg",
        "DFBench/Kolors/",
        "scripts/Kolors/1.jpg",
        ".git/hooks/1.jpg",
        "DFBench/.git/1.jpg",
        "DFBench/Kolors/.1.jpg",
        "DFBench/Kolors/__init__.py",
        "DFBench/__MACOSX/1.jpg",
        "C:/DFBench/Kolors/1.jpg",
        "1.jpg",
        "",
    ],
)
def test_unsafe_targets(image):
    assert not is_safe_target(image)
