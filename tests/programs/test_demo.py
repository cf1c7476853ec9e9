"""scripts/make_demo.py and scripts/make_tiny_models.py as users run them (tests/demo holds what they make)."""

import runpy
import subprocess
import sys
from collections.abc import Callable

import pytest

from dfbench.demo import generators
from dfbench.paths import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"


@pytest.mark.parametrize("program", ["make_demo.py", "make_tiny_models.py"])
def test_arguments_are_told_at_once(program):
    for words, status in ((["--seed", "many"], 2), (["--help"], 0)):
        command = [sys.executable, str(SCRIPTS / program), *words]
        assert subprocess.run(command, capture_output=True, timeout=5).returncode == status


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., str]:
    """A function: a program and its arguments -> what it printed. In this process: torch takes seconds to start."""

    def call(program: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / program))["main"]()
        return capsys.readouterr().out

    return call


def test_make_demo_says_in_one_line_what_it_made_and_prepares(run, monkeypatch, tmp_path):
    monkeypatch.setattr(generators, "STEPS", 2)  # tests/demo/test_generators.py trains them to the end
    made = run("make_demo.py", "--output-dir", tmp_path / "archives")
    assert made == f"{tmp_path / 'archives'}: 1440 train and 400 test images of 9 stand-in sources, made\n"
    again = run("make_demo.py", "--output_dir", tmp_path / "archives")
    assert again == made.replace("made\n", "already there\n")
    where = [
        "--archives",
        tmp_path / "archives",
        "--image_root",
        tmp_path,
        "--annotation_dir",
        tmp_path / "annotations",
    ]
    run("prepare_dataset.py", *where, "--decode", "--quiet")
    files = list((tmp_path / "DFBench").glob("*/**/*.png"))
    assert len(files) == 1840
    assert len({path.stat().st_size for path in files}) == 1


def test_make_tiny_models_makes_those_of_the_tests_whatever_torch_did_before(run, checkpoints, tmp_path):
    printed = run("make_tiny_models.py", "--output_dir", tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(checkpoints)
    for agent, checkpoint in checkpoints.items():
        assert f"{tmp_path / agent}: " in printed
        files = {path.name: path.read_bytes() for path in (tmp_path / agent).iterdir()}
        assert files == {path.name: path.read_bytes() for path in checkpoint.iterdir()}
