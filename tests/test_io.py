import errno
import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from filelock import Timeout

from dfbench.errors import InputError
from dfbench.io import (
    atomic_write,
    csv_cells,
    csv_text,
    file_lock,
    read_json_object,
    write_csv,
    write_json,
    write_text,
)

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


def test_what_utf8_cannot_hold_is_written_as_an_escape(tmp_path):
    """A file name of Latin-1, as Python reads it from the disk."""
    name = os.fsdecode(b"caf\xe9.csv")
    assert write_text(tmp_path / "a.txt", name).read_text() == r"caf\udce9.csv"
    assert json.loads(write_json(tmp_path / "a.json", {name: name}).read_text()) == {name: name}
    assert write_csv(tmp_path / "a.csv", pd.DataFrame({name: [name]})).read_text() == "caf\\udce9.csv\n" * 2


def test_an_error_that_names_its_file_keeps_the_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_bytes()
    assert caught.value.filename == str(tmp_path / "other.txt")


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.csv"
    with file_lock(path):
        with pytest.raises(Timeout), file_lock(path):
            pass
        with file_lock(tmp_path / "b.csv"):
            pass
    with file_lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


WAIT = """
import sys
from pathlib import Path
from dfbench.io import file_lock
print("waiting", flush=True)
with file_lock(Path(sys.argv[1]), wait=True):
    print("mine", flush=True)
"""


def test_a_lock_can_be_waited_for(tmp_path):
    """The file of the lock is removed at its end; who waits does not take the removed one."""
    path = tmp_path / "folder"
    with file_lock(path):
        others = [
            subprocess.Popen([sys.executable, "-c", WAIT, path], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        assert [other.stdout.readline() for other in others] == ["waiting\n"] * 2
        time.sleep(0.2)
        assert [other.poll() for other in others] == [None] * 2
    assert [other.communicate(timeout=30)[0] for other in others] == ["mine\n"] * 2
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(InputError, match=rf"a\.json holds {found}.*, not a recipe: write one\."):
        read_json_object(path, **WORDS)
