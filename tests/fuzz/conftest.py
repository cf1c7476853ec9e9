"""Fault injection and fuzzing: random faults and random damaged input, and what must hold whatever happens.

    pytest tests/fuzz                                    # a few seeded cases of each fuzzer, as in every test run
    pytest tests/fuzz --fuzz-seconds 600 --fuzz-seed 7   # each fuzzer for ten minutes, other cases with another seed
    pytest tests/fuzz -k annotations --fuzz-seed 7 --fuzz-case 1234     # one case again

A fuzzer is a function (rng, folder) -> None that makes one random case in an empty folder and asserts what must hold.
Its cases depend on its name, the seed and their number alone. The folder of a case that fails is kept, and the report
names it with the options that repeat it; the summary counts the cases of each fuzzer. Kills at random moments of whole
programs (`test_moments.py`) take seconds each and run with `--fuzz-seconds` only.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import pytest

cv2.setNumThreads(1)  # its threads do not survive a fork, and the programs under faults are forks of this process

Fuzzer = Callable[[random.Random, Path], None]

SECONDS_A_CASE = 120
"""What takes longer hangs."""

MOST_FAILURES = 20

_COUNTS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzzing")
    group.addoption("--fuzz-seconds", type=float, help="run each fuzzer that long, not a few cases")
    group.addoption("--fuzz-seed", type=int, default=0, help="another seed gives other cases")
    group.addoption("--fuzz-case", type=int, help="the number of the only case to run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("fuzz_seconds", None):
        terminalreporter.section("fuzzing")
        for line in config.stash.get(_COUNTS, []):
            terminalreporter.write_line(line)


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """A function (fuzzer, cases): runs so many cases, or as many as there is time for. A `partial` of a function is a
    fuzzer too.
    """

    def run(fuzzer: Fuzzer, cases: int) -> None:
        # A whole run of all tests does not ask this file for its options.
        option = partial(request.config.getoption, default=None)
        seconds, seed, only = option("fuzz_seconds"), option("fuzz_seed") or 0, option("fuzz_case")
        name = request.node.name
        if cases == 0 and seconds is None and only is None:
            pytest.skip("takes long: runs with --fuzz-seconds")
        numbers = count() if seconds else range(cases)
        numbers = numbers if only is None else [only]
        ends, failures, done = time.monotonic() + (seconds or 3600), [], 0
        for number in numbers:
            if time.monotonic() > ends or len(failures) == MOST_FAILURES:
                break
            done += 1
            folder = tmp_path_factory.mktemp(f"case{number}-", numbered=True).resolve()
            try:
                _one(fuzzer, random.Random(f"{name} {seed} {number}"), folder)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # pytest's own failures are no Exceptions
                again = f"--fuzz-seed {seed} --fuzz-case {number}"
                said = f"{type(error).__name__}: {error}".strip()
                failures.append(f"{again} ({folder}): {said[:200]}{'...' * (len(said) > 800)}{said[200:][-600:]}")
                if only is not None:
                    raise
            else:
                shutil.rmtree(folder, ignore_errors=True)
        counts = request.config.stash.setdefault(_COUNTS, [])
        counts.append(f"{name}: {done} cases, {len(failures)} failed, seed {seed}")
        if failures:
            pytest.fail(f"{len(failures)} of {done} cases of {name}:\n" + "\n".join(failures), pytrace=False)

    return run


class Hang(BaseException):
    """A case did not end. Not an Exception: no handler of the program may swallow it."""


def _one(fuzzer: Fuzzer, rng: random.Random, folder: Path) -> None:
    def too_long(*_: object) -> None:
        raise Hang(f"no end after {SECONDS_A_CASE} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS_A_CASE)
    try:
        fuzzer(rng, folder)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
