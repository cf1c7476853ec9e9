"""What the per-image CSV is made of: numbers that read back the same, rows, metadata that is put in place at once."""

import numpy as np
import pytest

from dfbench.errors import InputError
from dfbench.io import write_json
from dfbench.predictions.schema import (
    COLUMNS,
    FUSION,
    SCORING,
    check_output_csv,
    errors_path,
    format_float,
    format_rows,
    info_path,
    read_info,
)


def test_formatted_floats_read_back_the_same():
    values = np.random.default_rng(1).normal(0, 30, 1000).astype(np.float32)
    assert all(np.float32(format_float(value)) == value for value in values)


def test_rows_hold_the_softmax_and_the_letter_of_the_larger_probability():
    """Logits (1, 2): P(A) = 1 / (1 + e) = 0.26894142. Logits (0, 0): a tie, which is B."""
    rows = format_rows(["x/1.jpg", "x/2.jpg"], ["A", ""], np.array([[1, 2], [0, 0]], np.float32))
    assert rows[0][:5] == ("x/1.jpg", "A", "B", "1.0", "2.0")
    assert [float(cell) for cell in rows[0][5:]] == pytest.approx([0.26894142, 0.73105858])
    assert rows[1] == ("x/2.jpg", "", "B", "0.0", "0.0", "0.5", "0.5")
    assert len(COLUMNS) == len(rows[0])


def test_what_lies_beside_a_file(tmp_path):
    path = tmp_path / "agent.v2.csv"
    assert errors_path(path).name == "agent.v2.errors.csv"
    assert info_path(path).name == "agent.v2.json"
    assert read_info(path) == {}
    write_json(info_path(path), {"模型": 1})
    assert read_info(path) == {"模型": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["agent.v2.json"]


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "[" * 100_000], ids=["cut off", "a list", "bytes", "deep"])
def test_metadata_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"a\.json holds .*: move it away"):
        read_info(tmp_path / "a.csv")


SCORED, FUSED, NAMED = {"identity": {"dtype": "float32"}}, {"detector": "MoA-DF", "fusion": "vote"}, {"detector": "x"}


@pytest.mark.parametrize(
    ("mark", "metadata", "whose"),
    [
        (FUSION, SCORED, "a scoring run"),
        (FUSION, NAMED, "another program"),
        (FUSION, None, "another program"),  # a CSV alone
        (SCORING, FUSED, "a fusion"),
        (SCORING, NAMED, "another program"),
    ],
)
def test_results_of_another_program_are_replaced_with_overwrite_only(tmp_path, mark, metadata, whose):
    path = tmp_path / "a.csv"
    path.touch()
    if metadata is not None:
        write_json(info_path(path), metadata)
    with pytest.raises(
        InputError, match=rf"a\.csv: its scores are those of {whose}\. .*--output_csv, or .*--overwrite"
    ):
        check_output_csv(path, mark=mark)
    check_output_csv(path, mark=mark, overwrite=True)


def test_ones_own_results_and_a_new_path_are_fine(tmp_path):
    for mark, metadata in ((FUSION, FUSED), (SCORING, SCORED), (SCORING, SCORED | NAMED)):
        check_output_csv(tmp_path / "new" / "a.csv", mark=mark)
        write_json(tmp_path / "a.json", metadata)
        check_output_csv(tmp_path / "a.csv", mark=mark)


@pytest.mark.parametrize("mark", [SCORING, FUSION])
def test_a_json_of_something_else_is_kept_even_then(tmp_path, mark):
    write_json(tmp_path / "a.json", {"image": "x.jpg", "label": "A"})
    with pytest.raises(InputError, match=r"a\.json: no run wrote this file"):
        check_output_csv(tmp_path / "a.csv", mark=mark, overwrite=True)


def test_what_is_read_is_no_output(tmp_path):
    for name in ("a.csv", "a.json", "a.errors.csv"):
        with pytest.raises(InputError, match=rf"{name}: this file is read as well"):
            check_output_csv(tmp_path / "a.csv", [tmp_path / "b" / ".." / name], mark=FUSION, overwrite=True)


def test_a_link_to_itself_is_an_error_of_the_system(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((InputError, OSError), match="loop"):
        check_output_csv(tmp_path / "loop" / "a.csv", [tmp_path / "loop"], mark=FUSION)
