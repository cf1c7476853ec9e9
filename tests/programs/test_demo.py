"""scripts/make_demo.py and scripts/make_tiny_models.py as users run them (tests/demo holds what they make)."""

import subprocess
import sys

import pytest
from builders import run_here

from dfbench.data.sources import FAKE, REAL
from dfbench.demo import dataset, generators
from dfbench.paths import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"


@pytest.mark.parametrize("program", ["make_demo.py", "make_tiny_models.py"])
def test_arguments_are_told_at_once(program):
    for words, status in ((["--seed", "many"], 2), (["--help"], 0)):
        command = [sys.executable, str(SCRIPTS / program), *words]
        assert subprocess.run(command, capture_output=True, timeout=5).returncode == status


def test_make_demo_says_in_one_line_what_it_made_and_prepares(monkeypatch, tmp_path):
    monkeypatch.setattr(generators, "STEPS", 2)  # tests/demo/test_generators.py trains them to the end
    num_images = {"train": {REAL: 8, FAKE: 10}, "test": {REAL: 4, FAKE: 5}}  # of five real and four fake sources
    for split, counts in num_images.items():
        monkeypatch.setitem(dataset.NUM_IMAGES, split, counts)
    made = run_here("scripts/make_demo.py", "--output-dir", tmp_path / "archives").stdout
    assert made == f"{tmp_path / 'archives'}: 80 train and 40 test images of 9 stand-in sources, made\n"
    again = run_here("scripts/make_demo.py", "--output_dir", tmp_path / "archives").stdout
    assert again == made.replace("made\n", "already there\n")
    where = [
        "--archives",
        tmp_path / "archives",
        "--image_root",
        tmp_path,
        "--annotation_dir",
        tmp_path / "annotations",
    ]
    run_here("scripts/prepare_dataset.py", *where, "--decode", "--quiet")
    files = list((tmp_path / "DFBench").glob("*/**/*.png"))
    assert len(files) == 120
    assert len({path.stat().st_size for path in files}) == 1


def test_make_tiny_models_makes_those_of_the_tests_whatever_torch_did_before(checkpoints, tmp_path):
    printed = run_here("scripts/make_tiny_models.py", "--output_dir", tmp_path).stdout
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(checkpoints)
    for agent, checkpoint in checkpoints.items():
        assert f"{tmp_path / agent}: " in printed
        files = {path.name: path.read_bytes() for path in (tmp_path / agent).iterdir()}
        assert files == {path.name: path.read_bytes() for path in checkpoint.iterdir()}
