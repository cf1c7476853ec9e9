"""scripts/make_demo.py and scripts/make_tiny_models.py as users run them."""

import subprocess
import sys

import pytest

from dfbench.paths import REPOSITORY

ROOT = REPOSITORY


def run(program: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.mark.slow
def test_wrong_arguments_end_with_2():
    for program in ("make_demo.py", "make_tiny_models.py"):
        assert run(program, "--seed", "many").returncode == 2


@pytest.mark.slow
def test_make_demo_says_in_one_line_what_it_made_and_prepares(tmp_path):
    made = run("make_demo.py", "--output-dir", tmp_path / "archives")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == f"{tmp_path / 'archives'}: 1440 train and 400 test images of 9 stand-in sources, made\n"
    again = run("make_demo.py", "--output_dir", tmp_path / "archives")
    assert again.stdout == made.stdout.replace("made\n", "already there\n")
    where = [
        "--archives",
        tmp_path / "archives",
        "--image_root",
        tmp_path,
        "--annotation_dir",
        tmp_path / "annotations",
    ]
    prepared = run("prepare_dataset.py", *where, "--decode", "--quiet")
    assert prepared.returncode == 0, prepared.stderr
    files = list((tmp_path / "DFBench").glob("*/**/*.png"))
    assert len(files) == 1840
    assert len({path.stat().st_size for path in files}) == 1


@pytest.mark.slow
def test_make_tiny_models_names_the_three_folders(tmp_path):
    made = run("make_tiny_models.py", "--output_dir", tmp_path)
    assert made.returncode == 0, made.stderr
    for agent in ("qwen2.5", "internvl2.5", "internvl3"):
        assert f"{tmp_path / agent}: " in made.stdout
        assert (tmp_path / agent / "model.safetensors").stat().st_size > 0
