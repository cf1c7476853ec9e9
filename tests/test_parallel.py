"""Jobs in worker processes: results, order, errors, and what happens to workers whose parent is killed."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from dfbench.errors import InputError
from dfbench.parallel import available_cores, progress_bar, run_jobs
from dfbench.paths import REPOSITORY

JOBS = """
import os, time

def square(number):
    return number * number

def wait(seconds):
    time.sleep(seconds)
    return seconds

def process_id(_):
    time.sleep(0.05)
    return os.getpid()

def fail_at_three(number):
    if number == 3:
        raise ValueError("three")

def end_the_process(_):
    os._exit(9)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module that fresh processes can import, which they cannot with this one."""
    (tmp_path / "spawned_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("spawned_jobs")
    del sys.modules["spawned_jobs"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_comes_back_with_its_result(jobs, num_workers):
    assert sorted(run_jobs(jobs.square, range(20), num_workers)) == [(i, i * i) for i in range(20)]


def test_results_in_the_order_of_the_jobs(jobs):
    """The first job ends last."""
    assert list(run_jobs(jobs.wait, [0.3, 0, 0.01], 2, in_order=True)) == [(0.3, 0.3), (0, 0), (0.01, 0.01)]


def test_no_jobs(jobs):
    assert list(run_jobs(jobs.square, [], 2)) == []


def test_one_worker_means_no_other_process(jobs):
    assert {pid for _, pid in run_jobs(jobs.process_id, range(3), 1)} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in run_jobs(jobs.process_id, range(4), 2)}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_job_comes_through(jobs, num_workers):
    with pytest.raises(ValueError, match="three"):
        list(run_jobs(jobs.fail_at_three, range(10), num_workers))


def test_a_killed_worker_gets_one_line(jobs):
    with pytest.raises(InputError, match="fewer --workers"):
        list(run_jobs(jobs.end_the_process, range(4), 2))


PARENT = """
from spawned_jobs import process_id
from dfbench.parallel import run_jobs
if __name__ == "__main__":
    for _, pid in run_jobs(process_id, range(10_000), 2):
        print(pid, flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path, jobs):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = {int(parent.stdout.readline()) for _ in range(40)}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.stdout.close()
    assert not any(is_running(pid) for pid in workers)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_available_cores():
    assert 1 <= available_cores() <= os.cpu_count()


def test_a_progress_bar_is_silent_without_a_terminal(capsys):
    assert list(progress_bar([1, 2], "reading", "rows", quiet=False)) == [1, 2]
    assert list(progress_bar([1, 2], "reading", "rows", quiet=True)) == [1, 2]
    assert capsys.readouterr().err == ""


STARTING = """
import sys
import time

from dfbench import cli
from dfbench.parallel import run_jobs

if __name__ == "__mp_main__":
    time.sleep(3)  # as importing takes

def nothing(_):
    pass

def main():
    print("ready", flush=True)
    list(run_jobs(nothing, range(4), 2))

if __name__ == "__main__":
    sys.exit(cli.run(main))
"""


def test_an_interrupt_while_workers_start_is_one_line(tmp_path):
    """A terminal sends Ctrl-C to the workers, too."""
    (tmp_path / "starting.py").write_text(STARTING)
    command = [sys.executable, str(tmp_path / "starting.py")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
    process.stdout.readline()
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted; what was written stays, and the same command goes on from there\n"
