"""Run a program in a child process, and let something happen to it at one of its file operations.

The child is a fork of this process: it starts at once, what a test has replaced in a module holds in it as well, and
what happens to it is the real thing: `kill -9`, a signal, a limit of the kernel.
"""

import builtins
import errno
import gc
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import BinaryIO

from dfbench import cli
from dfbench.paths import REPOSITORY

_BUG = 99
"""Exit status of a child whose program let an exception through: its user would see a traceback."""


@dataclass(frozen=True)
class Fault:
    """What happens at a file operation: opening for writing, one write, renaming, removing, making a folder.

    kind: the name of a signal, or "full": the disk has no room from there on. at: number of the operation, from 1.
    part: share of the write's bytes that reach the disk, where the operation is a write.
    """

    kind: str
    at: int
    part: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit status (negative: a signal), what it printed, how many file operations it made."""

    status: int
    out: str
    err: str
    operations: int


def load_main(script: str) -> Callable[[], None]:
    """`main` of a program of the repository, such as `scripts/prepare_dataset.py`."""
    spec = spec_from_file_location(f"fuzzed_{Path(script).stem}", REPOSITORY / script)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run(
    main: Callable[[], None],
    words: Sequence[object],
    folder: Path,
    *,
    fault: Fault | None = None,
    limits: Mapping[int, int] | None = None,
    seconds: float = 60,
) -> Ended:
    """Run a program in `folder`. limits: {resource.RLIMIT_...: soft limit}. Raises TimeoutError where it hangs."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as note:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _be_the_child(main, words, folder, fault, limits or {}, (out, err, note))
        status = _wait(child, seconds)
        texts = []
        for file in (out, err, note):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        if status is None:
            raise TimeoutError(f"{words}: no end after {seconds} s; {texts[1][-500:]}")
        return Ended(status, texts[0], texts[1], int(texts[2] or 0))


def _wait(child: int, seconds: float) -> int | None:
    """The status of a child, negative for a signal; None where it had to be killed."""
    ends, pause = time.monotonic() + seconds, 0.001
    try:
        while time.monotonic() < ends:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be_the_child(
    main: Callable[[], None],
    words: Sequence[object],
    folder: Path,
    fault: Fault | None,
    limits: Mapping[int, int],
    files: Sequence[BinaryIO],
) -> None:
    status, counter = _BUG, _Counter(folder, fault)
    try:
        gc.disable()  # it would touch, and so copy, all that the parent has in memory
        signal.alarm(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        for number, file in enumerate(files[:2], start=1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
        sys.argv, sys.dont_write_bytecode = ["program", *map(str, words)], True
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        counter.install()
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        status = cli.run(main)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:  # noqa: BLE001 - nothing of this may return to the tests of the parent
        traceback.print_exc()
    finally:
        counter.fault = None
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(files[2].fileno(), str(counter.operations).encode())
        finally:
            os._exit(status)


_CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}
"""Audit events of operations that change a folder, and how many of their arguments are paths."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Counter:
    """Counts the file operations below a folder in this process, and strikes at one of them."""

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder, self.fault, self.operations, self.is_full = str(folder), fault, 0, False

    def install(self) -> None:
        """For good: an audit hook cannot be taken back."""
        real_open, counter = io.open, self

        class Raw(io.FileIO):
            def write(self, data: bytes) -> int:
                return counter.write(super().write, data)

        def counting_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
            if not set(mode) & set("wax+") or isinstance(file, int) or not counter.is_inside(file):
                return real_open(file, mode, buffering, encoding, errors, newline, **options)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), **options)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        io.open = builtins.open = counting_open
        sys.addaudithook(self._audit)

    def is_inside(self, path: object) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return bool(text) and (not os.path.isabs(text) or text.startswith(self.folder))

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            counts = isinstance(flags, int) and flags & _WRITING and self.is_inside(path)
        else:
            counts = any(map(self.is_inside, arguments[: _CHANGES.get(event, 0)]))
        if counts and self._is_struck():
            self._strike()

    def write(self, write: Callable[[bytes], int], data: bytes) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not self._is_struck():
            return write(data)
        written = write(bytes(data)[: int(self.fault.part * len(data))])
        self._strike()
        if not self.is_full:  # a signal whose handler came back
            return written + write(bytes(data)[written:])
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def _is_struck(self) -> bool:
        self.operations += 1
        return self.fault is not None and self.operations == self.fault.at

    def _strike(self) -> None:
        if self.fault.kind == "full":
            self.is_full = True
        else:
            os.kill(os.getpid(), getattr(signal, self.fault.kind))


def check_ended(ended: Ended, *statuses: int) -> None:
    """A program ended with one of these statuses and said why in a line, without a traceback."""
    said = f"{ended.out[-300:]}{ended.err[-1500:]}"
    assert ended.status in statuses, f"exit status {ended.status}, not {statuses}: {said}"
    check_words(ended.err)
    if ended.status in (1, 2):
        assert "error: " in ended.err, ended.err[-500:]


def check_words(text: str) -> None:
    """No traceback, and nothing that another library or the interpreter mumbles on its way out."""
    for word in ("Traceback (most recent", "Exception ignored", "Fatal Python error", "terminate called"):
        assert word not in text, text[-1500:]


def files_below(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of every file, `-> target` of a link; folders without a file end in `/`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(os.readlink(path))
        elif path.is_file():
            found[name] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[name + "/"] = b""
    return found
