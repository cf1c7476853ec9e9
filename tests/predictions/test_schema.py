"""What the per-image CSV is made of: numbers that read back the same, rows, metadata that is put in place at once."""

import numpy as np
import pytest

from dfbench.errors import InputError
from dfbench.io import write_json
from dfbench.predictions.schema import COLUMNS, errors_path, format_float, format_rows, info_path, read_info


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
