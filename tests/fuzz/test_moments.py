"""`kill -9` of whole programs, workers and all, at random moments: the same command gives an undisturbed run's files.

Each case starts real processes for seconds, so these run with --fuzz-seconds only.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import cached_property, partial
from pathlib import Path

import pytest
from fuzz import workplaces
from fuzz.faults import check_words
from fuzz.workplaces import Workplace, comparable

from dfbench.paths import REPOSITORY

ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}

SCRIPTS = {
    "features": "feature_distribution.py",
    "preparing": "scripts/prepare_dataset.py",
    "fusion": "logit_calculation.py",
    "results": "process_results.py",
    "conversion": "scripts/convert_internvl.py",
}


class Killed:
    """The program of a workplace, started as a process of its own."""

    def __init__(self, script: str, place: Workplace) -> None:
        self.command = [sys.executable, str(REPOSITORY / script), *map(str, place.words)]
        self.fill, self.statuses = place.fill, {place.status, place.status if place.again is None else place.again}

    @cached_property
    def undisturbed(self) -> tuple[float, dict[str, bytes]]:
        """Seconds of an undisturbed run, and its files."""
        with tempfile.TemporaryDirectory() as name:
            self.fill(Path(name))
            began = time.monotonic()
            self.finish(Path(name))
            return time.monotonic() - began, comparable(Path(name))

    def start(self, folder: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command, cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)

    def kill(self, folder: Path, after: float) -> None:
        process = self.start(folder)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def finish(self, folder: Path) -> None:
        """Run to the end; workers of a killed run may have the lock for a moment more."""
        for _ in range(50):
            process = self.start(folder)
            _, err = process.communicate(timeout=300)
            check_words(err)
            if "Another run is writing" not in err:
                assert process.returncode in self.statuses, err
                return
            time.sleep(0.2)
        raise AssertionError("the lock of a killed run stays")


def fuzz_moments(program: Killed, rng: random.Random, folder: Path) -> None:
    seconds, files = program.undisturbed
    program.fill(folder)
    for _ in range(rng.randint(1, 3)):
        program.kill(folder, rng.uniform(0.3, 1.05) * seconds)
    program.finish(folder)
    found = comparable(folder)
    assert found.keys() == files.keys(), found.keys() ^ files.keys()
    assert found == files, [name for name in found if found[name] != files[name]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_moments(fuzz, name):
    place = getattr(workplaces, name)(*((2,) if name in ("features", "preparing") else ()))
    fuzz(partial(fuzz_moments, Killed(SCRIPTS[name], place)), cases=0)


def test_moments_of_scoring(fuzz, checkpoints):
    """On a real tiny model."""
    place = workplaces.scoring(checkpoints["internvl3"])
    place.words += ("--workers", 2)
    fuzz(partial(fuzz_moments, Killed("internvl3/evaluate_logit.py", place)), cases=0)
