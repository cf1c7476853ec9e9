"""Too few file descriptors, too little memory, files that may not grow: a line, and nothing wrong in the files."""

import random
import resource
import signal
from functools import partial
from pathlib import Path

import pytest
from fuzz import workplaces
from fuzz.faults import check_words
from fuzz.workplaces import Workplace


def fuzz_limits(place: Workplace, rng: random.Random, folder: Path) -> None:
    place.fill(folder)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit, value = rng.choice(
        (
            (resource.RLIMIT_NOFILE, rng.randint(3, 40)),
            (resource.RLIMIT_FSIZE, rng.choice((0, rng.randrange(3000)))),
            (resource.RLIMIT_AS, taken + (rng.randrange(64) << 20)),
        )
    )
    ended = place.run(folder, limits={limit: value})
    usual = {place.status} | ({place.again} if place.again is not None else set())
    if limit != resource.RLIMIT_AS:  # where memory ends, other libraries may end the process as they like
        assert ended.status in {1, *usual}, ended
        check_words(ended.err)
    elif ended.status not in {1, *usual}:
        assert ended.status < 0 or "MemoryError" in ended.err or "memory" in ended.err.lower(), ended
    place.finish(folder)


@pytest.mark.parametrize("program", ["features", "preparing", "fusion"])
def test_limits(fuzz, program, monkeypatch):
    workplaces.without_drawings(monkeypatch)
    fuzz(partial(fuzz_limits, getattr(workplaces, program)()), cases=2)


def test_limits_of_scoring(fuzz, fake_model, tmp_path, monkeypatch):
    workplaces.without_drawings(monkeypatch)
    fuzz(partial(fuzz_limits, workplaces.scoring(tmp_path)), cases=2)


def test_files_that_may_not_grow_are_no_signal():
    """What `fuzz_limits` rests on: Python ignores SIGXFSZ, so that a write fails as on a full disk."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
