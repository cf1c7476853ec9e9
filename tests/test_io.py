import errno

import pytest

from dfbench.errors import InputError
from dfbench.io import atomic_write, csv_cells, csv_text, naming, read_json_object, write_json, write_text

WORDS = {"expected": "a recipe", "remedy": "write one"}


def test_a_file_is_seen_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with atomic_write(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_on_the_way_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "before")

    def fill_the_disk():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        fill_the_disk()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    assert caught.value.filename == str(path)


def test_an_error_that_names_its_file_keeps_the_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_bytes()
    assert caught.value.filename == str(tmp_path / "other.txt")


def test_rows_come_back_as_they_were_written():
    rows = [["a", "b"], ['with, comma and "quotes"', ""], ["Größe", " x "]]
    assert [csv_cells(line) for line in csv_text(rows).splitlines()] == rows
    assert csv_cells("a\rb") == csv_cells("") == []


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"name": "Größe", "values": [1, 2.5, None]}
    path = write_json(tmp_path / "new" / "a.json", content)
    assert "Größe" in path.read_text(encoding="utf-8")
    assert read_json_object(path, **WORDS) == content


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"{", "broken JSON"), (b"\xff", "broken JSON"), (b"[1]", r"\[1\]"), (b"[" * 100_000, "broken JSON")],
)
def test_anything_but_an_object_is_named(tmp_path, content, found):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json.*{found}.*a recipe.*write one"):
        read_json_object(path, **WORDS)
