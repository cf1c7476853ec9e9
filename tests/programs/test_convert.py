"""scripts/convert_internvl.py as a program: exit status and what it prints."""

import subprocess
import sys

import pytest

from dfbench.paths import REPOSITORY

ROOT = REPOSITORY
ORACLE = ROOT / "tests" / "fixtures" / "internvl_oracle"

pytestmark = pytest.mark.slow  # each start of the program imports transformers


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "convert_internvl.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_it_converts_with_lora_and_says_where(tmp_path):
    done = run("--input", ORACLE / "model", "--output", tmp_path / "out", "--lora", ORACLE / "lora_weights.pth")
    assert (done.returncode, done.stdout) == (0, f"native checkpoint: {tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_wrong_rank_is_one_line_and_status_1(tmp_path):
    lora = ("--lora", ORACLE / "lora_weights.pth", "--lora-rank", 4, "--lora_alpha", 8)
    done = run("--input", ORACLE / "model", "--output", tmp_path / "out", *lora)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "found LoRA of rank 8" in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_status_2(tmp_path):
    assert run("--input", ORACLE / "model").returncode == 2
    assert run("--input", ORACLE / "model", "--output", tmp_path / "out", "--lora-rank", 0).returncode == 2
