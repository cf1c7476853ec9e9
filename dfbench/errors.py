"""The exceptions that stand for a user's mistake, and how a message quotes what was found."""


class InputError(Exception):
    """Something that was handed to us cannot be used: a file, a row, a checkpoint, a combination of options.

    Its message is one or two plain sentences: what is wrong, where (file, then row and column where they apply), and
    what to do. Programs print it as one line and exit with status 1 (see `dfbench.cli.run`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


class OptionError(InputError):
    """Options that do not go together, or that this machine cannot do. Programs exit with status 2."""


def plain_line(text: str) -> str:
    """One line of printable characters: names and keys come from files of others and must not drive the terminal."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def first_line(error: Exception) -> str:
    """What another library's error says, for a message: its first line, or else its name, shortened."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message: one line, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
