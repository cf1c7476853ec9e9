"""What every program shares: option spelling, exit status, one-line errors."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from dfbench.errors import InputError, OptionError


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
    own bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to stop
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dfbench").setLevel(logging.INFO)  # libraries may warn, no more
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except OSError as error:
        place, reason = error.filename or "operating system", error.strerror or error
        advice = "Correct the path, its permissions or the room on the disk, and repeat the command."
        print(f"error: {place}: {reason}. {advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was written stays, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0
