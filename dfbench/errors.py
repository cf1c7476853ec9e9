"""The one exception that stands for a user's mistake, and the one shape of its message."""


class InputError(Exception):
    """Something that was handed to us cannot be used: a file, a row, a checkpoint, a combination of options.

    Programs print it as one line and exit with status 1 (see `dfbench.cli.run`); no traceback is shown. The line says
    where the trouble is (file, then row and column where they apply), what was found, what was expected, and what to
    do.
    """

    def __init__(self, where: object, *, found: str, expected: str, remedy: str) -> None:
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        super().__init__(" ".join(f"{where}: found {found}; expected {expected}; {remedy}".split()))


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message: one line, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
