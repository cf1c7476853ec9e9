"""scripts/convert_internvl.py as a program: exit status and what it prints."""

import subprocess
import sys

import pytest
from builders import run_here

from dfbench.paths import REPOSITORY

ROOT = REPOSITORY
ORACLE = ROOT / "tests" / "fixtures" / "internvl_oracle"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here("scripts/convert_internvl.py", *arguments)


def test_it_converts_with_lora_and_says_where(tmp_path):
    options = ("--input", ORACLE / "model", "--output", tmp_path / "out", "--lora", ORACLE / "lora_weights.pth")
    command = [sys.executable, ROOT / "scripts" / "convert_internvl.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, f"native checkpoint: {tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_wrong_rank_is_one_line_and_status_1(tmp_path):
    lora = ("--lora", ORACLE / "lora_weights.pth", "--lora-rank", 4, "--lora_alpha", 8)
    done = run("--input", ORACLE / "model", "--output", tmp_path / "out", *lora)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "has rank 8; expected 4" in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_status_2(tmp_path):
    assert run("--input", ORACLE / "model").returncode == 2
    assert run("--input", ORACLE / "model", "--output", tmp_path / "out", "--lora-rank", 0).returncode == 2


FILES = ("--output", "out", "--input")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, ""),
        ([*FILES, "nowhere"], 1, "error: nowhere/config.json: no such file"),
        ([*FILES, ORACLE / "model", "--lora", "nowhere.pth"], 1, "error: nowhere.pth: no such file"),
        ([*FILES, ORACLE / "model", "--lora-rank", 0], 2, "usage:"),
    ],
)
def test_help_and_wrong_paths_answer_before_the_slow_imports(tmp_path, arguments, status, message):
    program = f"""
import runpy, sys
try:
    runpy.run_path({str(ROOT / "scripts" / "convert_internvl.py")!r}, run_name="__main__")
finally:
    assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr[: len(message)]) == (status, message)
    assert not list(tmp_path.iterdir())
