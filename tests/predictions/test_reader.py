"""The per-image CSV: every shape read, every bad cell named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.io import write_json
from dfbench.predictions.reader import Detector, read_detector, read_detectors, write_detector
from dfbench.predictions.schema import COLUMNS

HEADER = ",".join(COLUMNS)
GOOD = (
    "DFBench/edit/1.jpg,B,B,1.5,2.5,0.26894143,0.7310586",
    "DFBench/LIVE/gblur/img1.bmp,A,A,2,-2,0.98201376,0.01798621",
)


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


# Reading our own shape.


def test_reads_every_column(tmp_path):
    found = read_detector(write(tmp_path / "qwen2.5.csv", *GOOD))
    assert found.name == "qwen2.5"
    frame = found.frame
    assert frame["image"].tolist() == ["DFBench/edit/1.jpg", "DFBench/LIVE/gblur/img1.bmp"]
    assert frame["label"].tolist() == frame["answer"].tolist() == ["B", "A"]
    assert frame["logit_A"].tolist() == [1.5, 2]
    assert [frame[column].dtype for column in COLUMNS[3:]] == [np.float32] * 4


def test_empty_label_and_logits_are_allowed(tmp_path):
    frame = read_detector(write(tmp_path / "a.csv", "x.jpg,,B,,,0.25,0.75")).frame
    assert frame["label"].tolist() == [""]
    assert np.isnan(frame["logit_A"][0])
    assert np.isnan(frame["logit_B"][0])


def test_further_columns_byte_order_marks_spaces_and_windows_line_ends_do_not_matter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(f"\ufeff{HEADER},decided_early\r\n./DFBench\\edit\\1.jpg, B ,B,, ,0.25,0.75,1\r\n".encode())
    frame = read_detector(path).frame
    assert frame.loc[0, ["image", "label", "answer"]].tolist() == ["DFBench/edit/1.jpg", "B", "B"]


def test_what_is_written_reads_back_the_same(tmp_path):
    rng = np.random.default_rng(0)
    pair = rng.random(500).astype(np.float32)
    frame = pd.DataFrame({"image": [f'DFBench/edit/{i},"x".jpg' for i in range(500)], "label": "B"})
    frame["prob_A"], frame["prob_B"] = pair, 1 - pair
    frame["answer"] = np.where(frame["prob_A"] > frame["prob_B"], "A", "B")
    size = rng.choice([1e-9, 1, 1e3], 500).astype(np.float32)  # cells of many lengths
    frame["logit_B"] = np.where(pair > 0.9, np.float32("nan"), size)
    frame["logit_A"] = frame["logit_B"] + np.log(pair / (1 - pair))
    written = Detector("a", frame.assign(prob_B_qwen=pair), info={"x": 1})
    write_detector(tmp_path / "a.csv", written)
    found = read_detector(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(found.frame[list(COLUMNS)], frame[list(COLUMNS)], check_dtype=False)
    assert found.info == {"x": 1}
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == HEADER + ",prob_B_qwen"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_errors_beside_the_file_are_counted(tmp_path):
    write(tmp_path / "a.csv", *GOOD)
    write(tmp_path / "a.errors.csv", 'DFBench/edit/2.jpg,"file\nis missing"', header="image,error")
    assert read_detector(tmp_path / "a.csv").num_errors == 1
    write(tmp_path / "a.errors.csv", "DFBench/edit/2.jpg," + "x" * 131_073, header="image,error")
    with pytest.raises(InputError, match=r"a\.errors\.csv: this is no CSV of images and their errors .* Move it away"):
        read_detector(tmp_path / "a.csv")


# Files that were cut off.

FUSED_HEADER = HEADER + ",prob_B_x"
WHOLE = {
    "ours": (HEADER, GOOD),
    "fused": (FUSED_HEADER, ("x.jpg,B,B,,,0.25,0.75,0.5", "y.jpg,B,B,,,0.25,0.75,0.875")),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_of_ours_that_lacks_its_last_bytes_is_refused(tmp_path, kind):
    header, lines = WHOLE[kind]
    write(tmp_path / "a.csv", *lines, header=header)
    write_json(tmp_path / "a.json", {"fusion" if kind == "fused" else "identity": {}, "rows": 2})
    whole = (tmp_path / "a.csv").read_bytes()
    assert len(read_detector(tmp_path / "a.csv").frame) == 2
    last_row = len(lines[-1]) + 1
    for cut in range(1, last_row):
        (tmp_path / "a.csv").write_bytes(whole[:-cut])
        with pytest.raises(InputError, match=r"a\.csv: the last row ends in .*: the file was cut off"):
            read_detector(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(whole[:-last_row])
    with pytest.raises(InputError, match=r"a\.csv: the file has 1 rows, and by a\.json 2 were written"):
        read_detector(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "cells",
    [
        "0.26894143,0.7310586",
        "0.5,0.5",
        "1.0,0.0",
        "1.0,3.4e-09",
        "0.0123457,0.987654",
        "0.3334,0.6667",
        "0.1000,0.9",
        "1.2e-5,0.99999",
        "0.012345678901234567,0.9876543210987654",
    ],
)
def test_a_foreign_file_may_lack_its_last_line_break(tmp_path, cells):
    answer = "A" if float(cells.split(",")[0]) > 0.5 else "B"
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{GOOD[0]}\nx.jpg,,{answer},,,{cells}")
    assert len(read_detector(tmp_path / "a.csv").frame) == 2


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (HEADER, "x.jpg,A,A,,,0.73105857,0.26894"),
        (HEADER, "x.jpg,A,A,,,0.7310585786300049,0.268941"),
        (HEADER, "x.jpg,A,A,,,0.987654,0.01234"),
        (HEADER + ",prob_B_x", "x.jpg,A,A,,,0.75,0.25"),
        ("imgname,answer,output,prob_A,prob_B", "x.jpg,A,A,0.7310586,0.26894"),
        ("imgname,answer,output,prob_B,prob_A", "x.jpg,A,A,0.268941,0.73105"),
    ],
)
def test_a_foreign_file_that_ends_inside_its_last_cell_is_refused(tmp_path, header, row):
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{row}")
    with pytest.raises(InputError, match=r"a\.csv: the last row ends in .*: the file was cut off\. Write it again"):
        read_detector(path)


@pytest.mark.parametrize(
    ("line", "place", "found"),
    [
        ("x.jpg,A,A,,,0.75", "prob_B", "''"),
        ("x.jpg,A,A,one,2,0.75,0.25", "logit_A", "'one'"),
        ("x.jpg,A,A,inf,2,0.75,0.25", "logit_A", "'inf'"),
        ("x.jpg,A,A,1,nan,0.75,0.25", "logit_B", "'nan'"),
        ("x.jpg,A,A,1,2,1.25,-0.25", "prob_A", "1.25"),
        ("x.jpg,A,A,1,2,0.75,0.24", "prob_A, prob_B", "0.75 and 0.24"),
        ("x.jpg,A,B,1,2,0.75,0.25", "answer", "B with prob_A 0.75 and prob_B 0.25"),
        ("x.jpg,A,A,1,2,0.5,0.5", "answer", "A with prob_A 0.5 and prob_B 0.5"),
        ("x.jpg,A,,1,2,0.75,0.25", "answer", "''"),
        ("x.jpg,A,A,1,2,0.75,0.25", "logit_A, logit_B", "1.0 and 2.0 with prob_A 0.75"),
        ("x.jpg,A,A,1,,0.75,0.25", "logit_A, logit_B", "1.0 and nan with prob_A 0.75"),
        ("x.jpg,real,A,1,2,0.75,0.25", "label", "'real'"),
        (",A,A,1,2,0.75,0.25", "image", "empty"),
        ("", "image", "empty"),
        ("DFBench/edit/1.jpg,B,B,,,0.25,0.75", "image", "DFBench/edit/1.jpg again (first in row 2)"),
        ("./DFBench/edit/1.jpg,B,B,,,0.25,0.75", "image", "DFBench/edit/1.jpg again (first in row 2)"),
    ],
)
def test_a_bad_row_is_named_as_it_stands_in_the_file(tmp_path, line, place, found):
    path = write(tmp_path / "a.csv", GOOD[0], line, GOOD[1])
    with pytest.raises(InputError) as caught:
        read_detector(path)
    assert str(caught.value).startswith(f"{path}, row 3: {place} is {found}; expected ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "No columns to parse"),
        (HEADER + "\n", "the file has no rows"),
        ("image,label,answer\nx,A,A\n", "the columns are 'image,label,answer'; expected image,label"),
        (HEADER + "\n" + GOOD[0] + "\n" + GOOD[1] + ",7\n", "Expected 7 fields in line 3, saw 8"),
        (HEADER + '\n"x,A,A\n', "EOF inside string"),
        (HEADER + "\n" + GOOD[0] + ",7\n" + GOOD[1] + ",7\n", "Length of header"),
        (HEADER + "\n" + GOOD[0] + "\0\0\n", "there are zero bytes in it"),
    ],
)
def test_an_unusable_file_is_one_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        read_detector(tmp_path / "a.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_other_encodings_are_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\nDFBench/\xe9.jpg,A,A,,,1,0\n")
    for path, message in (
        (tmp_path / "no.csv", "no such file"),
        (tmp_path, "this is a folder"),
        (tmp_path / "latin.csv", "utf-8"),
    ):
        with pytest.raises(InputError, match=message):
            read_detector(path)


def test_broken_metadata_is_refused(tmp_path):
    write(tmp_path / "a.csv", *GOOD)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json holds broken JSON"):
        read_detector(tmp_path / "a.csv")


# Upstream's two shapes.


def test_upstream_qwen_columns_go_by_name_and_missing_answers_are_counted(tmp_path):
    path = write(
        tmp_path / "resultsqwen25.csv",
        "DFBench/edit/1.jpg,B,B,-2.3026,-0.1054,0.1000,0.9000",
        "DFBench/edit/2.jpg,ERROR,B,N/A,N/A,N/A,N/A",
        "DFBench/CSIQ/3.jpg,A,A,-0.1,-inf,0.0000,0.0000",
        "DFBench/CSIQ/4.jpg,A,A,-0.0,-9.9,1.0000,0.0000",
        "DFBench/CSIQ/5.jpg,A,A,-0.7,-0.7,0.5001,0.5000",
        header="image_path,predicted_reply,true_label,logprob_A,logprob_B,prob_A,prob_B",
    )
    found = read_detector(path)
    assert found.frame["image"].tolist() == ["DFBench/edit/1.jpg", "DFBench/CSIQ/4.jpg", "DFBench/CSIQ/5.jpg"]
    assert found.frame["label"].tolist() == ["B", "A", "A"]
    assert found.frame["answer"].tolist() == ["B", "A", "A"]
    assert found.frame["logit_A"].isna().all()
    assert found.num_errors == 2


def test_upstream_internvl_answer_is_the_label(tmp_path):
    path = write(
        tmp_path / "results3.csv",
        "DFBench/edit/1.jpg,B,A,0.75,0.25",
        "DFBench/edit/2.jpg,B,[NO_ACTIVE_LABELS],-1.0,-1.0",
        header="imgname,answer,output,prob_A,prob_B",
    )
    found = read_detector(path)
    assert found.frame[["label", "answer"]].to_numpy().tolist() == [["B", "A"]]
    assert found.num_errors == 1


def test_upstream_file_without_any_answer_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "x.jpg,B,?,-1.0,-1.0", header="imgname,answer,output,prob_A,prob_B")
    with pytest.raises(InputError, match="no row has probabilities"):
        read_detector(path)


# Several files.


def test_names_come_from_metadata_then_file_then_folder(tmp_path):
    paths = [write(tmp_path / folder / "scores.csv", *GOOD) for folder in "ab"] + [
        write(tmp_path / "moa_df.csv", *GOOD)
    ]
    write_json(tmp_path / "moa_df.json", {"detector": "MoA-DF"})
    assert [found.name for found in read_detectors(paths)] == ["a/scores", "b/scores", "MoA-DF"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("\ud800x", r"\ud800x"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines", "two lines"),
        ("\x1f", "a"),
        (7, "a"),
    ],
)
def test_names_that_no_terminal_or_file_should_get_are_made_harmless(tmp_path, given, name):
    path = write(tmp_path / "a.csv", *GOOD)
    (tmp_path / "a.json").write_text(json.dumps({"detector": given}))
    assert [found.name for found in read_detectors([path])] == [name]


def test_names_stay_different_when_they_are_made_harmless(tmp_path):
    paths = [write(tmp_path / f"a{character}.csv", *GOOD) for character in "\x01\x02\x03"]
    names = [found.name for found in read_detectors(paths)]
    assert len(set(names)) == 3
    assert all(name.isprintable() for name in names)


def test_the_same_file_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", *GOOD)
    with pytest.raises(InputError, match=r"a\.csv: the same file is named twice"):
        read_detectors([path, tmp_path / "." / "a.csv"])
