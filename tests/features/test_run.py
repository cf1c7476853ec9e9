"""Measuring whole sources: what is written, in which order, and what an interrupted run leaves."""

import csv
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfbench.data.discovery import Images, find_images
from dfbench.errors import InputError
from dfbench.features import run as feature_run
from dfbench.features.compute import format_row, measure_image
from dfbench.features.run import BATCH_SIZE, measure_sources
from dfbench.features.schema import COLUMNS
from dfbench.predictions.writer import only_run

NUM_IMAGES = 3 * BATCH_SIZE + 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sources of 26 images, of one, and of none that is readable."""
    rng = np.random.default_rng(0)
    for name in [*(f"many/{i:02d}.png" for i in range(NUM_IMAGES)), "one/only.jpg"]:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    for name, content in (("many/07.png", b""), ("many/25.png", b"text"), ("bad/1.jpg", b"text")):
        (tmp_path / "root" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "root" / name).write_bytes(content)
    return tmp_path / "root"


def measure(root: Path, output_dir: Path, images: Images | None = None, **options):
    return measure_sources(images or find_images(root), root, output_dir, **{"workers": 1, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the metadata, which names the commit."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def test_files_of_a_run(root: Path, tmp_path: Path) -> None:
    outcome = measure(root, tmp_path / "out")
    assert (outcome.num_measured, outcome.num_errors, outcome.num_new) == (NUM_IMAGES - 2 + 1, 3, NUM_IMAGES + 2)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    csvs = {"many.csv", "one.csv", "bad.csv", "many.errors.csv", "bad.errors.csv"}
    assert names == csvs | {"many.json", "one.json", "bad.json"}
    with (tmp_path / "out" / "many.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert ",".join(header[:5]) == "image,brightness,contrast,colorfulness,si"
    good = [f"many/{i:02d}.png" for i in range(NUM_IMAGES) if i not in (7, 25)]
    assert [tuple(row) for row in rows] == [format_row(key, measure_image(root / key)) for key in good]
    assert (tmp_path / "out" / "many.errors.csv").read_text() == (
        "image,error\nmany/07.png,file is empty\nmany/25.png,cannot be decoded: no image of a known format\n"
    )
    info = json.loads((tmp_path / "out" / "many.json").read_text())
    assert (info["num_images"], info["num_errors"]) == (NUM_IMAGES - 2, 2)


@pytest.mark.parametrize("kept", [0, 10, 85, 86, 900, 1300, -5, None])
def test_resume_from_any_byte(root: Path, tmp_path: Path, kept: int | None) -> None:
    """A killed run leaves a beginning of the rows, in the order in which they came."""
    measure(root, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    header, *rows = whole["many.csv"].splitlines(keepends=True)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "many.part0.csv").write_bytes(b"".join([header, *rows[8:16], *rows[:8], *rows[16:]])[:kept])
    assert measure(root, tmp_path / "part").num_measured == NUM_IMAGES - 2 + 1
    assert contents(tmp_path / "part") == whole


def test_no_other_run_changes_what_is_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would bring parts into the CSV and remove them, just when they are to be read."""
    looked_at, read_tables = [], feature_run.read_tables

    def read_while_another_run_tries(csv_path: Path, *arguments: object):
        with pytest.raises(InputError, match="Another run is writing"), only_run(csv_path):
            pass
        looked_at.append(csv_path.stem)
        return read_tables(csv_path, *arguments)

    monkeypatch.setattr(feature_run, "read_tables", read_while_another_run_tries)
    measure(root, tmp_path / "out")
    assert looked_at == ["bad", "many", "one"]


def measure_again_and_again(root: Path, folders: list[Path], barrier, outcomes) -> None:
    images = find_images(root)
    for folder in folders:
        barrier.wait(timeout=60)
        try:
            outcomes.put(measure(root, folder, images).num_measured)
        except Exception as error:  # noqa: BLE001 the other process waits for an outcome
            outcomes.put(str(error).partition(str(folder))[0])


@pytest.mark.slow
def test_of_two_runs_at_once_one_ends_the_work(root: Path, tmp_path: Path) -> None:
    """20 pairs of processes. The later one says so, or comes too late to be in the way and finds everything there."""
    folders = [tmp_path / f"out{i}" for i in range(20)]
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(2), context.SimpleQueue()
    arguments = (root, folders, barrier, outcomes)
    processes = [context.Process(target=measure_again_and_again, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [outcomes.get() for _ in range(2 * len(folders))]
    for process in processes:
        process.join()
    assert set(found) <= {NUM_IMAGES - 2 + 1, "Another run is writing to "}
    assert found.count(NUM_IMAGES - 2 + 1) >= len(folders)
    measure(root, tmp_path / "alone")
    assert all(contents(folder) == contents(tmp_path / "alone") for folder in folders)


def test_a_pipe_and_a_link_to_nothing_are_errors_of_their_rows(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "many/pipe.png")
    (root / "many/gone.png").symlink_to(tmp_path / "no such file")
    assert measure(root, tmp_path / "out").num_errors == 3 + 2
    errors = (tmp_path / "out" / "many.errors.csv").read_text().splitlines()
    assert {"many/gone.png,file is missing", "many/pipe.png,is no regular file"} < set(errors)


def test_a_mangled_row_is_measured_again(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    whole = contents(tmp_path / "out")
    lines = whole["many.csv"].splitlines(keepends=True)
    (tmp_path / "out" / "many.csv").write_bytes(b"".join([*lines[:3], b"many/02.png,1.0\n", b"\n", *lines[4:]]))
    assert measure(root, tmp_path / "out").num_new == 1 + 3
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("tail", [b"many/26.p", b"many/25.png,1,2", b"many/25.png,1\r2\n", b"\n", b'"many/25.png,1\n'])
def test_a_broken_end_of_a_finished_csv_is_mended(root: Path, tmp_path: Path, tail: bytes) -> None:
    """With errors in the source, which are tried again and the CSV written, and without."""
    measure(root, tmp_path / "out")
    whole = contents(tmp_path / "out")
    for name in ("one.csv", "many.csv"):
        with (tmp_path / "out" / name).open("ab") as file:
            file.write(tail)
    assert measure(root, tmp_path / "out").num_new == 3  # the errors
    assert contents(tmp_path / "out") == whole


def test_a_row_without_its_end_is_measured_again(root: Path, tmp_path: Path) -> None:
    """Cut within its last cell, it has as many as a whole one."""
    measure(root, tmp_path / "out")
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "one.csv").write_bytes(whole["one.csv"][:-1])
    assert measure(root, tmp_path / "out").num_new == 1 + 3
    assert contents(tmp_path / "out") == whole


def test_a_finished_source_is_left_alone(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    paths = [tmp_path / "out" / name for name in ("one.csv", "one.json")]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
    measure(root, tmp_path / "out")
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths] == before


def test_metadata_that_a_kill_prevented_are_written_by_the_next_run(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    path = tmp_path / "out" / "one.json"
    for content in (None, '{"num_images": 0, "num_errors": 0}'):
        path.unlink()
        if content:
            path.write_text(content)
        assert measure(root, tmp_path / "out").num_new == 3  # the errors of other sources
        assert json.loads(path.read_text())["num_images"] == 1


@pytest.mark.parametrize("name", ["one.csv", "one.part0.csv"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_that_another_run_measures_is_refused(root: Path, tmp_path: Path, name: str, overwrite: bool) -> None:
    measure(root, tmp_path / "out")
    (tmp_path / "out" / name).touch()
    before = contents(tmp_path / "out")
    with only_run(tmp_path / "out" / name), pytest.raises(InputError, match=rf"Another run is writing to .*{name}\."):
        measure(root, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path / "out") == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize(
    ("name", "listed"), [(b"line\nbreak.png", "line\\nbreak.png"), (b"latin\xe9.png", "latin\\udce9.png")]
)
def test_a_name_that_no_csv_can_hold_is_listed(root: Path, tmp_path: Path, name: bytes, listed: str) -> None:
    (root / "one" / os.fsdecode(name)).write_bytes((root / "one" / "only.jpg").read_bytes())
    outcome = measure(root, tmp_path / "out")
    assert outcome.num_errors == 4
    with (tmp_path / "out" / "one.errors.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", f"one/{listed}"]
    assert (tmp_path / "out" / "one.csv").read_text().count("\n") == 2


def test_a_full_disk_is_told_with_the_file(root: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one.csv.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        measure(root, tmp_path / "out", {"one": ["one/only.jpg"]})
    assert caught.value.filename == str(tmp_path / "out" / "one.csv")


def test_a_disk_that_fills_up_is_told_with_the_file(root: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: like a full disk, it shows when the rows are written."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120, hard))  # the header and half a row
    try:
        with pytest.raises(InputError, match=r"one\.part0\.csv cannot be written: File too large"):
            measure(root, tmp_path / "out", {"one": ["one/only.jpg"]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert measure(root, tmp_path / "out", {"one": ["one/only.jpg"]}).num_measured == 1


def test_the_order_in_which_images_come_does_not_show(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(root, tmp_path / "forward")
    monkeypatch.setattr(
        feature_run, "run_jobs", lambda work, jobs, *_, **__: ((job, work(job)) for job in reversed(jobs))
    )
    measure(root, tmp_path / "backward")
    assert contents(tmp_path / "backward") == contents(tmp_path / "forward")


def test_resume_after_a_kill_between_two_files(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "one.part0.csv").write_bytes(whole["one.csv"])  # put in place, the rest not yet removed
    (tmp_path / "out" / "many.csv").rename(tmp_path / "out" / "many.part0.csv")  # not yet put in place
    measure(root, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_only_errors_are_tried_again(root: Path, tmp_path: Path) -> None:
    first = measure(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = measure(root, tmp_path / "out")
    assert again.num_new == 3
    assert (again.num_measured, again.num_errors, again.errors) == (first.num_measured, first.num_errors, first.errors)
    assert contents(tmp_path / "out") == before
    for name in ("many/07.png", "many/25.png"):
        Image.new("RGB", (5, 5)).save(root / name)
    repaired = measure(root, tmp_path / "out")
    assert (repaired.num_new, repaired.num_errors) == (3, 1)
    assert "many.errors.csv" not in contents(tmp_path / "out")
    assert (tmp_path / "out" / "many.csv").read_text().count("\n") == NUM_IMAGES + 1


def test_a_larger_selection_keeps_what_is_there(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "whole")
    some = {"many": [f"many/{i:02d}.png" for i in range(3, 20)]}
    assert measure(root, tmp_path / "out", some).num_new == 17
    assert measure(root, tmp_path / "out").num_new == NUM_IMAGES + 2 - 16  # one of the 17 had failed
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_smaller_selection_is_refused_and_costs_nothing(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    some = {"many": [f"many/{i:02d}.png" for i in range(20, NUM_IMAGES)]}
    with pytest.raises(InputError, match=r"many\.csv holds 19 images that this run does not have.*Choose no fewer"):
        measure(root, tmp_path / "out", some)
    assert contents(tmp_path / "out") == before
    assert measure(root, tmp_path / "out", some, overwrite=True).num_new == NUM_IMAGES - 20


def test_a_csv_of_other_columns_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one.csv").write_text("image,brightness\none/only.jpg,3\n")
    with pytest.raises(InputError, match=r"one\.csv has the header 'image,brightness', not image,b"):
        measure(root, tmp_path / "out")


@pytest.mark.slow
def test_processes_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "one")
    measure(root, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
