"""`kill -9`, Ctrl-C, SIGTERM and a full disk at every file operation of every program: nothing is lost or left over.

Whatever happened, and however often, the same command goes on, and its files are those of an undisturbed run, byte for
byte.
"""

import random
import signal
from functools import partial
from pathlib import Path

import pytest
from fuzz import workplaces
from fuzz.faults import Ended, check_ended, check_words
from fuzz.workplaces import Workplace

PROGRAMS = ("features", "preparing", "fusion", "results", "conversion")

WHOLE = (".json", ".md", ".tex", ".html", ".safetensors")
"""Files that are put in place at once: nobody ever sees half of one."""


@pytest.fixture(scope="module", params=PROGRAMS)
def made(request: pytest.FixtureRequest) -> Workplace:
    return getattr(workplaces, request.param)()


@pytest.fixture
def scoring(fake_model: object, tmp_path: Path) -> Workplace:
    return workplaces.scoring(tmp_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    workplaces.without_drawings(monkeypatch)


def fuzz_faults(workplace: Workplace, rng: random.Random, folder: Path) -> None:
    """Up to three faults, one after the other, then an undisturbed run."""
    workplace.fill(folder)
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("SIGKILL", "SIGKILL", "SIGKILL", "SIGINT", "SIGTERM", "full"))
        check_fault(kind, workplace, workplace.run(folder, workplace.random_fault(rng, kind)))
        check_whole_files(workplace, folder)
    workplace.finish(folder)


def check_fault(kind: str, workplace: Workplace, ended: Ended) -> None:
    """How a program may end that met this fault, or came to its end before it."""
    usual = {workplace.status} | ({workplace.again} if workplace.again is not None else set())
    if kind == "SIGINT":
        check_ended(ended, 130, *usual)
    elif kind == "full":
        check_ended(ended, 1, *usual)
    else:
        assert ended.status in {-getattr(signal, kind), *usual}, ended
        check_words(ended.err)


def check_whole_files(workplace: Workplace, folder: Path) -> None:
    """No file that is put in place at once is there in part."""
    expected = workplace.undisturbed[0]
    for name, content in workplaces.comparable(folder).items():
        if name in expected and name.endswith(WHOLE) and b'"finished": false' not in content:
            assert content == expected[name], f"{name} is half written"


def test_faults_of_programs(fuzz, made):
    fuzz(partial(fuzz_faults, made), cases=3)


def test_faults_of_scoring(fuzz, scoring):
    fuzz(partial(fuzz_faults, scoring), cases=5)
