"""What every program shares: option spelling, exit status, one-line errors, and what reaches the terminal."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from dfbench.errors import InputError, OptionError, plain


class ArgumentParser(argparse.ArgumentParser):
    """`argparse` that takes `--image-root` for `--image_root`, shows defaults and accepts no abbreviations."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        args = list(sys.argv[1:] if args is None else args)
        end = args.index("--") if "--" in args else len(args)  # what follows are values
        return super().parse_known_args([*map(_underscored, args[:end]), *args[end:]], namespace)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks and appends `(default: ...)` where there is one worth showing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def _underscored(arg: str) -> str:
    name, equals, value = arg.partition("=")
    if not name.startswith("--"):
        return arg
    return name.replace("-", "_").replace("__", "--", 1) + equals + value


def positive_int(text: str) -> int:
    """`argparse` type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def natural_int(text: str) -> int:
    """`argparse` type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def fraction(text: str) -> float:
    """`argparse` type: a number from 0 up to, but not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a fraction from 0 to below 1")
    return value


def run(main: Callable[[], None]) -> int:
    """Run a program and return its exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.

    Only the user's and the machine's faults (`InputError`, `OSError`) become one line on stderr; anything else is our
    own bug and keeps its traceback. Names and cells of files reach the terminal without control characters, and a
    program whose output nobody reads any more goes on to write its files (see `_Output`).
    """
    out, err = _Output(sys.stdout, show=plain), _Output(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        handler = logging.StreamHandler()
        handler.setFormatter(_PlainFormatter())
        logging.basicConfig(handlers=[handler])
        logging.getLogger("dfbench").setLevel(logging.INFO)  # libraries may warn, no more
        try:
            status = _status(main)
            out.flush()
            if out.error and status == 0:
                status = _complain(f"standard output: {out.error.strerror}. {_ADVICE}")
            return status
        finally:  # argparse ends programs with SystemExit
            out.flush()
            err.flush()


_ADVICE = "Correct the path, its permissions or the room on the disk, and repeat the command."


def _status(main: Callable[[], None]) -> int:
    try:
        main()
    except InputError as error:
        return _complain(str(error), 2 if isinstance(error, OptionError) else 1)
    except OSError as error:
        return _complain(f"{error.filename or 'operating system'}: {error.strerror or error}. {_ADVICE}")
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # Path.resolve, before Python 3.13
            raise
        return _complain(f"{error}. {_ADVICE}")
    except KeyboardInterrupt:
        print("interrupted; what was written stays, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _complain(message: str, status: int = 1) -> int:
    print(f"error: {plain(message)}", file=sys.stderr)
    return status


class _PlainFormatter(logging.Formatter):
    """The message alone, fit for the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Output:
    """Stands for stdout or stderr, and outlives it.

    Once the other end of a pipe has closed (`| head -1`), what is printed is dropped: the results are in files. So it
    is after any other failure, such as a full disk, but that one is kept as `error`. show: makes a text fit to print;
    not for stderr, where progress bars move the cursor.
    """

    def __init__(self, stream: TextIO | None, show: Callable[[str], str] = str) -> None:
        self._stream, self._show = stream, show
        self.error: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to stop

    def write(self, text: str) -> int:
        self._attempt("write", self._show(text))
        return len(text)

    def flush(self) -> None:
        self._attempt("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: str, *arguments: str) -> None:
        if self._stream is None:  # started without one
            return
        try:
            getattr(self._stream, action)(*arguments)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = self.error or error
            # What is left in the stream's buffer would fail once more when Python ends.
            with suppress(OSError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
