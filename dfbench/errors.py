"""The exceptions that stand for a user's mistake, and how a message quotes what was found."""

import re


class InputError(Exception):
    """Something that was handed to us cannot be used: a file, a row, a checkpoint, a combination of options.

    Its message is one or two plain sentences: what is wrong, where (file, then row and column where they apply), and
    what to do. Programs print it as one line and exit with status 1 (see `dfbench.cli.run`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


class OptionError(InputError):
    """Options that do not go together, or that this machine cannot do. Programs exit with status 2."""


# Control characters but for tab and line break, marks that reverse the direction of writing, halves of UTF-16 pairs.
_NOT_PLAIN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """A text for the terminal: what names and cells hold to move the cursor or to clear the screen shows as escapes."""
    return _NOT_PLAIN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plain_line(text: str) -> str:
    """The same on one line."""
    return plain(" ".join(text.split()))


def first_line(error: Exception) -> str:
    """What another library's error says, for a message: its first line, or else its name, shortened."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message: one line, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
