"""Plain functions that several test files build their cases with; what pytest has to know of is in conftest.py."""

import io
import logging
import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from dfbench.models.registry import AGENTS
from dfbench.paths import REPOSITORY
from dfbench.predictions.join import Predictions
from dfbench.predictions.reader import Detector
from dfbench.prepare.hub import Target


def make_zip(path: Path, members: Mapping[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """members: {name or ZipInfo: bytes}, in this order."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def put(root: Path, image: str, data: bytes) -> None:
    path = root / image
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def keys(source: str, *names: str) -> list[str]:
    return [f"DFBench/{source}/{name}" for name in names]


def agent_targets(root: Path) -> tuple[Target, ...]:
    """Where the agents look for annotations, if their folders lay in `root`."""
    return tuple(
        Target(root / agent.name / agent.train_annotations, root / agent.name / agent.test_annotations)
        for agent in AGENTS.values()
    )


def random_detector(name: str, sources: Mapping[str, str], num_images: int = 8, seed: int = 0) -> Detector:
    """Random answers on `num_images` of each source, given as {source: label}."""
    frame = _images(sources, num_images)
    frame["prob_B"] = np.random.default_rng(seed).random(len(frame)).astype(np.float32)
    return _answered(name, frame)


_SOURCES = {"Flick8k": "A", "LIVE": "A", "CSIQ": "A", "edit": "B", "Kolors": "B", "NOVA": "B"}


def fair_detector(num_images: int = 50, sources: Mapping[str, str] = _SOURCES, seed: int = 0) -> Detector:
    """Answers that are right more often than not."""
    frame = _images(sources, num_images)
    prob_fake = np.random.default_rng(seed).beta(np.where(frame["label"] == "B", 4, 2), 2)
    frame["prob_B"] = prob_fake.astype(np.float32)
    return _answered("x", frame)


def _images(sources: Mapping[str, str], num_images: int) -> pd.DataFrame:
    images = [f"DFBench/{source}/{i}.jpg" for source in sources for i in range(num_images)]
    return pd.DataFrame({"image": images, "label": np.repeat(list(sources.values()), num_images)})


def _answered(name: str, frame: pd.DataFrame) -> Detector:
    frame["prob_A"] = np.float32(1) - frame["prob_B"]
    frame["answer"] = np.where(frame["prob_A"] > frame["prob_B"], "A", "B")
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    return Detector(name, frame)


def metadata_of(
    predictions: Predictions, width: object, height: object = 400, num_bytes: object = 50_000, kind: object = "JPEG"
) -> pd.DataFrame:
    """What would have been read of the images' headers."""
    columns = {"width": width, "height": height, "bytes": num_bytes, "format": kind}
    return pd.DataFrame(columns, index=predictions.images).astype(dict.fromkeys(("width", "height", "bytes"), float))


def flag(words: list[str], name: str) -> str | None:
    """The value of the last `--name value`, which is the one that counts in ms-swift's parser."""
    places = [i for i, word in enumerate(words) if word == f"--{name}"]
    return words[places[-1] + 1] if places else None


def run_here(program: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a program of the repository in this process, where what it imports is loaded already: how it ended."""
    words, out, err = [str(REPOSITORY / program), *map(str, arguments)], io.StringIO(), io.StringIO()
    no_handlers = patch.object(logging.getLogger(), "handlers", [])  # pytest's would keep the program from its own
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err), no_handlers:
        try:
            runpy.run_path(words[0], run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def interpret(code: str) -> list[float]:
    """Run code in a process whose Triton kernels are interpreted on the CPU: the numbers that it prints.

    The interpreter is chosen when a kernel is imported, so this needs a process of its own.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]
