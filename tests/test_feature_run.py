"""Measuring whole sources: what is written, in which order, and what an interrupted run leaves."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfbench.errors import InputError
from dfbench.feature_run import BATCH_SIZE, measure_sources
from dfbench.features import COLUMNS, format_row, measure_image
from dfbench.image_sets import Images, find_images

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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


@pytest.mark.parametrize(("kept", "num_errors"), [(0, 0), (10, 0), (85, 1), (900, 1), (1300, 1), (-5, 2)])
def test_resume_from_any_byte(root: Path, tmp_path: Path, kept: int, num_errors: int) -> None:
    """A run killed while it writes leaves a beginning of the CSV, and the errors of the batches up to this one."""
    measure(root, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "many.csv").write_bytes(whole["many.csv"][:kept])
    errors = whole["many.errors.csv"].splitlines(keepends=True)[: 1 + num_errors]
    (tmp_path / "part" / "many.errors.csv").write_bytes(b"".join(errors))
    measure(root, tmp_path / "part")
    assert contents(tmp_path / "part") == whole


def test_a_finished_run_has_nothing_to_do(root: Path, tmp_path: Path) -> None:
    first = measure(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = measure(root, tmp_path / "out")
    assert again.num_new == 0
    assert (again.num_measured, again.num_errors, again.errors) == (first.num_measured, first.num_errors, first.errors)
    assert contents(tmp_path / "out") == before


def test_overwrite_looks_again(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    Image.new("RGB", (5, 5)).save(root / "many" / "07.png")
    assert measure(root, tmp_path / "out").num_errors == 3
    assert measure(root, tmp_path / "out", overwrite=True).num_errors == 2


def test_another_selection_is_refused_and_costs_nothing(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    other = {"many": [f"many/{i:02d}.png" for i in range(20, NUM_IMAGES)]}
    with pytest.raises(InputError, match=r"many.csv: row 2: .*--output_dir"):
        measure(root, tmp_path / "out", other)
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
def test_processes_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    measure(root, tmp_path / "one")
    measure(root, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
