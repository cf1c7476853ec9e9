"""ms-swift as processes of their own: what they are always asked, one run for a folder, and that they end with us."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from filelock import Timeout

from dfbench.errors import InputError, OptionError
from dfbench.io import file_lock
from dfbench.parallel import noted_signals

ALWAYS = ("--external_plugins", str(Path(__file__).with_name("swift_plugin.py")))
"""Our templates, and that no process outlives us."""

LAUNCHER = "DFBENCH_LAUNCHER"
"""The environment variable that tells ms-swift's processes which one they may not outlive (see `swift_plugin`)."""

_PATIENCE = ((signal.SIGTERM, 30), (signal.SIGKILL, 5))
"""How many seconds ms-swift's processes get to follow a signal. torchrun itself waits long for its workers."""


@contextmanager
def only_run(path: Path, message: str) -> Iterator[None]:
    """Hold the lock of what a run writes. Raises InputError with this message where another process has it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path))
        except Timeout:
            raise InputError(message) from None
        except OSError:
            pass  # a file system without locks
        yield


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_swift(command: str, flags: Sequence[str], advice: str = "") -> None:
    """Run `swift <command>` to its end.

    Later flags win in its parser: what the user typed after the shell's own flags overrides them. Arguments in a
    folder's `args.json`, which can name modules to import, are never read.
    Raises OptionError where it refuses its arguments, and InputError, with `advice`, where it fails. Ctrl-C and SIGTERM
    end all of its processes, and are KeyboardInterrupt then.
    """
    words = [sys.executable, "-m", "swift.cli.main", command, *flags, "--load_args", "false"]
    status = _wait(words, {"USE_HF": "1", **os.environ, LAUNCHER: str(os.getpid())})
    unknown = _unknown_flags(command, flags) if status == 1 else []
    if status == 2 or unknown:
        what = f"unknown arguments {' '.join(unknown)}" if unknown else "wrong arguments, as its last line above says"
        raise OptionError(f"swift {command}: {what}")
    if status:
        raise InputError(f"swift {command} ended with exit status {status}; its last lines above say why. {advice}")


def _wait(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a session of its own, so that signals reach its processes through us. Its exit status."""
    # An exception from a handler could come while the process is being started, before there is one to end.
    with noted_signals(signal.SIGINT, signal.SIGTERM) as interrupts:
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        while not interrupts:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
        _end(process)
    raise KeyboardInterrupt


def _end(process: subprocess.Popen) -> None:
    """End a process and all others of its session's group, and wait until they are gone."""
    for number, seconds in _PATIENCE:
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)


def _unknown_flags(command: str, flags: Sequence[str]) -> list[str]:
    """The flags that ms-swift does not have, at which it ends like at any failure. Importing it takes many seconds."""
    try:
        from swift.arguments import ExportArguments, SftArguments
    except ImportError:
        return []
    known = {field.name for field in fields(SftArguments if command == "sft" else ExportArguments)}
    names = [word.partition("=")[0] for word in flags if word.startswith("--")]
    return [name for name in names if name[2:].replace("-", "_").removeprefix("no_") not in known]
