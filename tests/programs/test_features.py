"""feature_distribution.py, plot_features.py and scripts/benchmark_features.py as users run them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from builders import run_here as run
from PIL import Image

from dfbench.paths import REPOSITORY

ROOT = REPOSITORY
SOURCES = ("Flick8k", "LIVE", "edit", "Kolors")


def start(program: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def write_images(folder: Path, count: int, side: int = 80, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        pixels = rng.normal(rng.uniform(80, 180), rng.uniform(10, 60), (side, side, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}{suffix}")


def write_copies(folder: Path, count: int) -> None:
    """One image that takes its time to decode, `count` times over."""
    write_images(folder, 1, side=600, suffix=".png")
    for i in range(1, count):
        shutil.copy(folder / "000000.png", folder / f"{i:06d}.png")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the metadata, which names the commit."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def num_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.csv"):
        with suppress(FileNotFoundError):  # a part that is brought into its CSV just now
            total += path.stat().st_size
    return total


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small DFBench: four sources, a text file, a corrupt image."""
    for source in SOURCES:
        write_images(tmp_path / "DFBench" / source, 6)
    (tmp_path / "DFBench" / "LIVE" / "info.txt").write_text("not an image")
    (tmp_path / "DFBench" / "Kolors" / "000002.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return tmp_path


def test_measuring_folders(root: Path, tmp_path: Path) -> None:
    arguments = ("--image-root", root, "--output-dir", tmp_path / "out", "--workers", 1)
    result = run("feature_distribution.py", *arguments)
    assert "23 images of 4 sources (24 new" in result.stdout
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: 1 image could not be measured; see {tmp_path / 'out' / 'Kolors.errors.csv'}. Repair or remove"
    )
    assert result.stderr.count("\n") == 1
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set(SOURCES)
    with (tmp_path / "out" / "Kolors.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["image", "brightness", "contrast", "colorfulness", "si"]
    assert [row[0] for row in rows] == [f"DFBench/Kolors/00000{i}.jpg" for i in (0, 1, 3, 4, 5)]
    with (tmp_path / "out" / "Kolors.errors.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", "DFBench/Kolors/000002.jpg"]
    (root / "DFBench" / "Kolors" / "000002.jpg").unlink()
    assert run("feature_distribution.py", *arguments).returncode == 0


def test_measuring_what_annotations_name(root: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>Real?"}, {"from": "gpt", "value": [{"content": "B"}]}]
    keys = ["DFBench/Kolors/000001.jpg", "DFBench/Kolors/999999.jpg", "DFBench/edit/000000.jpg"]
    lines = [json.dumps({"image": key, "conversations": turns}) for key in keys]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    arguments = ("--image_root", root, "--annotations", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out")
    result = run("feature_distribution.py", *arguments, "--workers", 1)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert set(contents(tmp_path / "out")) == {"edit.csv", "Kolors.csv", "Kolors.errors.csv"}
    assert (tmp_path / "out" / "Kolors.errors.csv").read_text() == (
        "image,error\nDFBench/Kolors/999999.jpg,file is missing\n"
    )


def test_some_sources_and_a_few_of_each(root: Path, tmp_path: Path) -> None:
    arguments = ("--image_root", root, "--output_dir", tmp_path / "out", "--sources", "LIVE", "edit", "--workers", 1)
    result = run("feature_distribution.py", *arguments, "--limit-per-source", 2)
    assert result.returncode == 0, result.stderr
    assert "4 images of 2 sources" in result.stdout
    result = run("feature_distribution.py", *arguments[:4], "--sources", "Live")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no image of Live; there are Flick8k, Kolors, LIVE, edit" in result.stderr


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    result = run("feature_distribution.py", "--image_root", tmp_path, "--output_dir", tmp_path / "out")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    (tmp_path / "a" / "1.jpg").write_bytes(b"text")
    result = run("feature_distribution.py", "--image_root", tmp_path, "--output_dir", tmp_path / "out")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "None of 1 images below" in result.stderr
    assert run("feature_distribution.py", "--limit_per_source", 0).returncode == 2


@pytest.mark.slow
def test_plotting_what_was_measured(root: Path, tmp_path: Path) -> None:
    features, figures = tmp_path / "features", tmp_path / "figures"
    measured = run("feature_distribution.py", "--image_root", root, "--output_dir", features, "--workers", 1)
    assert measured.returncode == 1, measured.stderr  # one image is corrupt; the others are drawn
    result = run("plot_features.py", "--features-dir", features, "--output-dir", figures, "--normalise", "panel")
    assert result.returncode == 0, result.stderr
    assert (result.stderr, result.stdout.count("\n")) == ("", 1)
    assert len(list(figures.glob("feature_*.svg"))) == 6
    table = (figures / "feature_table.csv").read_text().splitlines()
    assert len(table) == 1 + 5 * len(SOURCES)
    assert "each panel by itself" in (figures / "feature_captions.md").read_text()


def test_plotting_nothing_is_an_error(tmp_path: Path) -> None:
    result = run("plot_features.py", "--features_dir", tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "Run feature_distribution.py first" in result.stderr
    assert run("plot_features.py", "--normalise", "none").returncode == 2


@pytest.mark.slow
def test_benchmark(tmp_path: Path) -> None:
    write_images(tmp_path, 1, side=120)
    arguments = ("--image", tmp_path / "000000.jpg", "--repeats", 2, "--images", 20, "--workers", 1)
    result = run("scripts/benchmark_features.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "120x120 JPEG" in result.stdout
    (difference,) = [line.split()[2] for line in result.stdout.splitlines() if "largest difference" in line]
    assert float(difference) < 0.01


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Of a real run with workers; tests/features/test_run.py cuts the files at every place."""
    for source in SOURCES[:2]:
        write_copies(tmp_path / "DFBench" / source, 30)
    (tmp_path / "DFBench" / "LIVE" / "000020.png").write_bytes(b"text")
    arguments = ("--image_root", tmp_path, "--output_dir")
    out = tmp_path / "part"
    process = start("feature_distribution.py", *arguments, out, "--workers", 2)
    while process.poll() is None and num_bytes(out) < 500:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    assert run("feature_distribution.py", *arguments, out, "--workers", 1).returncode == 1  # done, with one error
    assert run("feature_distribution.py", *arguments, tmp_path / "whole", "--workers", 1).returncode == 1
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the workers in /proc")
def test_a_killed_worker_ends_the_run_in_one_line(tmp_path: Path) -> None:
    write_copies(tmp_path / "DFBench" / "LIVE", 60)
    arguments = ("--image_root", tmp_path, "--workers", 2, "--output_dir", tmp_path / "out")
    process = start("feature_distribution.py", *arguments)
    csv_path = tmp_path / "out" / "LIVE.csv"
    while num_bytes(tmp_path / "out") < 500:
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "worker" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert run("feature_distribution.py", *arguments, "--workers", 1).returncode == 0
    assert csv_path.read_text().count("\n") == 61
