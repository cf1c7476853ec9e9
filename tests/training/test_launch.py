"""ms-swift as a process: its exit status is ours, and no process of it outlives us."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfbench.errors import InputError, OptionError
from dfbench.training import launch
from dfbench.training.launch import LAUNCHER, run_swift


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A function: shell commands that take the place of ms-swift. $@ are its arguments; they run in tmp_path."""

    def write(commands: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{commands}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def test_what_ms_swift_is_started_with(stand_in, tmp_path):
    stand_in('echo "$@" > words; env > env')
    run_swift("sft", ["--load_args", "true", "--x", "1"])
    words = (tmp_path / "words").read_text()
    assert words == "-m swift.cli.main sft --load_args true --x 1 --load_args false\n", "the last one counts"
    environment = (tmp_path / "env").read_text().splitlines()
    assert {"USE_HF=1", f"{LAUNCHER}={os.getpid()}", f"PATH={os.environ['PATH']}"} <= set(environment)


def test_when_ms_swift_fails_so_do_we(stand_in):
    stand_in("exit 3")
    with pytest.raises(InputError, match=r"^swift sft ended with exit status 3; .* say why\. Some advice\.$"):
        run_swift("sft", [], "Some advice.")


@pytest.mark.parametrize("command", ["sft", "export"])
def test_arguments_that_ms_swift_refuses_are_wrong_arguments(stand_in, command):
    stand_in("exit 2")
    with pytest.raises(OptionError, match=f"^swift {command}: wrong arguments, as its last line above says$"):
        run_swift(command, [])


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--bogus_flag", "2", "--other=3"], OptionError, "swift sft: unknown arguments --bogus_flag --other$"),
        (["--max-steps", "2", "--no_packing", "--packing=true"], InputError, "swift sft ended with exit status 1;"),
    ],
)
def test_flags_that_ms_swift_does_not_have_are_wrong_arguments(stand_in, monkeypatch, flags, error, message):
    stand_in("exit 1")
    arguments = make_dataclass("Arguments", ["max_steps", "packing"])
    stub = SimpleNamespace(SftArguments=arguments, ExportArguments=arguments)
    monkeypatch.setitem(sys.modules, "swift.arguments", stub)
    monkeypatch.setitem(sys.modules, "swift", SimpleNamespace(arguments=stub))
    with pytest.raises(error, match=message):
        run_swift("sft", flags)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes_of_ms_swift(stand_in, tmp_path, number):
    stand_in("sleep 100 & echo $! > child; echo $$ > parent; wait")
    threading.Thread(target=_signal_once, args=(tmp_path / "parent", number)).start()
    with pytest.raises(KeyboardInterrupt):
        run_swift("sft", [])
    assert [_runs(int((tmp_path / name).read_text())) for name in ("parent", "child")] == [False, False]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupt_while_ms_swift_is_being_started_ends_it_too(stand_in, tmp_path, monkeypatch):
    start = subprocess.Popen

    def start_and_interrupt(*words: object, **options: object) -> subprocess.Popen:
        process = start(*words, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return process

    stand_in("echo $$ > parent; sleep 100")
    monkeypatch.setattr(launch.subprocess, "Popen", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_swift("sft", [])
    parent = tmp_path / "parent"  # it may have been ended before its first line
    assert not (parent.exists() and _runs(int(parent.read_text() or "-1")))


def test_a_signal_that_is_ignored_stays_so(stand_in):
    stand_in("kill -INT $PPID; sleep 0.2; exit 7")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(InputError, match="exit status 7"):
            run_swift("sft", [])
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_ignores_sigterm_is_killed(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_PATIENCE", ((signal.SIGTERM, 0.2), (signal.SIGKILL, 5)))
    stand_in("trap '' TERM; echo $$ > parent; while true; do sleep 0.1; done")
    threading.Thread(target=_signal_once, args=(tmp_path / "parent", signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_swift("sft", [])
    assert not _runs(int((tmp_path / "parent").read_text()))


def _signal_once(path: Path, number: signal.Signals) -> None:
    """Send a signal to this process once the file has a line."""
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, "2"])
def test_training_dies_with_its_command(checkpoints, photo_set, tmp_path, workers):
    """kill -9 of our process alone, with ms-swift at work in one process or in torchrun's."""
    pytest.importorskip("swift", reason="training needs ms-swift")
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "dfbench.training.train", "sft", "--model", checkpoints["internvl3"],
        "--model_type", "internvl", "--train_annotations", photo_set.messages, "--image_root", photo_set.root,
        "--output_dir", out, "--max_steps", "100000", "--logging_steps", "1", "--save_strategy", "no",
        "--dataloader_num_workers", "1", "--dataset_num_proc", "1",
    ]  # fmt: skip
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"NPROC_PER_NODE": workers, "MASTER_PORT": "29577"} if workers else {}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        started = _wait_for(lambda: (out / "logging.jsonl").exists() or process.poll() is not None, 300)
        assert started, (tmp_path / "log").read_text()[-3000:]
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert len(_processes(out)) > 2
    finally:
        process.kill()
        process.wait()
    assert _wait_for(lambda: not _processes(out), 30), _processes(out)
    log_lines = (out / "logging.jsonl").read_text()
    time.sleep(1)
    assert (out / "logging.jsonl").read_text() == log_lines


def _wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _processes(out: Path) -> dict[int, str]:
    """The processes that have the output folder among their arguments."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words:
            found[int(path.parent.name)] = b" ".join(words).decode()
    return found
