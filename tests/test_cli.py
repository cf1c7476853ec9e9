"""What every program shares: spelling of options, exit status, errors of one line."""

import pytest

from dfbench import cli
from dfbench.errors import InputError, OptionError, shorten


def parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser("What it does.\n\n    python program.py --image_root DIR")
    parser.add_argument("--image_root", default="here", help="folder")
    parser.add_argument("--limit", type=cli.positive_int, help="how many")
    parser.add_argument("--workers", type=cli.natural_int, default=0, help="processes")
    parser.add_argument("names", nargs="*")
    return parser


@pytest.mark.parametrize(
    "words", [["--image_root", "a-b"], ["--image-root", "a-b"], ["--image-root=a-b"], ["--image_root=a-b"]]
)
def test_both_spellings_and_values_keep_their_hyphens(words):
    assert parser().parse_args(words).image_root == "a-b"


def test_values_are_left_alone():
    args = parser().parse_args(["--limit", "3", "a-b.csv", "--", "--image-root"])
    assert args.names == ["a-b.csv", "--image-root"]
    assert args.limit == 3


def test_unknown_flags_are_passed_on_in_the_spelling_of_ms_swift():
    training = cli.ArgumentParser("Train.")
    training.add_argument("--image_root")
    args, rest = training.parse_known_args(["--max-steps", "10", "--learning_rate=1e-4", "--image-root", "x"])
    assert args.image_root == "x"
    assert rest == ["--max_steps", "10", "--learning_rate=1e-4"]


@pytest.mark.parametrize(
    "words",
    [
        ["--image"],
        ["--nonsense"],
        ["--limit", "0"],
        ["--limit", "x"],
        ["--limit", "1.5"],
        ["--workers", "-1"],
        ["--limit"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2_and_say_which(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_zero_is_a_whole_number():
    assert parser().parse_args(["--workers", "0"]).workers == 0


def test_help_keeps_line_breaks_and_shows_defaults_worth_showing(capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "What it does.\n\n    python program.py --image_root DIR\n" in shown
    assert "folder (default: here)" in shown
    assert "(default: None)" not in shown


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_done_is_0(capsys):
    assert cli.run(lambda: print("result")) == 0
    assert capsys.readouterr() == ("result\n", "")


def test_a_users_mistake_is_one_line_and_1(capsys):
    assert cli.run(raising(InputError("a.csv, row 3: the label is\n'C'. Correct this row."))) == 1
    assert capsys.readouterr().err == "error: a.csv, row 3: the label is 'C'. Correct this row.\n"


def test_options_that_do_not_go_together_are_wrong_arguments(capsys):
    assert cli.run(raising(OptionError("--fast needs --gpu."))) == 2
    assert capsys.readouterr().err == "error: --fast needs --gpu.\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/data/x.csv"), "/data/x.csv: Permission denied"),
        (OSError(28, "No space left on device"), "operating system: No space left on device"),
        (OSError("odd"), "operating system: odd"),
    ],
)
def test_the_machines_fault_is_one_line_and_1(capsys, error, line):
    assert cli.run(raising(error)) == 1
    found = capsys.readouterr().err
    assert found.startswith(f"error: {line}. Correct the path, ")
    assert len(found.splitlines()) == 1


def test_an_interrupt_is_130(capsys):
    assert cli.run(raising(KeyboardInterrupt())) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_our_own_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


def test_shorten():
    assert shorten("C") == "'C'"
    assert shorten("two\nlines") == r"'two\nlines'"
    assert len(shorten("x" * 500)) == 80
    assert shorten("x" * 500).endswith("...")
    assert shorten(["A"] * 100, 20) == "['A', 'A', 'A', '..."
