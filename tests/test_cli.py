"""What every program shares: spelling of options, exit status, errors of one line."""

import logging
import os
import subprocess
import sys

import pytest

from dfbench import cli
from dfbench.errors import InputError, OptionError, shorten
from dfbench.paths import REPOSITORY


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


# ------------------------------------------------------------------------------------------- what reaches a terminal


HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x9bc\u202ed\udcffe"
SHOWN = r"a\x1b]0;title\x07\x1b[2Jb\x9bc\u202ed\udcffe"


def test_no_control_character_of_a_name_reaches_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without pytest's, as in a program

    def main() -> None:
        print(f"{HOSTILE}:\t100 %\nGrün, 真实")
        logging.getLogger("dfbench.test").warning("warning: %s", HOSTILE)
        raise InputError(f"{HOSTILE}: no such\rimage.")

    assert cli.run(main) == 1
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}:\t100 %\nGrün, 真实\n"
    assert err == f"warning: {SHOWN}\nerror: {SHOWN}: no such image.\n"


def test_nor_of_a_path_that_the_machine_complains_of(capsys):
    assert cli.run(raising(PermissionError(13, "Permission denied", f"/data/{HOSTILE}"))) == 1
    assert capsys.readouterr().err.startswith(f"error: /data/{SHOWN}: Permission denied. ")


def test_a_loop_of_links_is_one_line(capsys, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert cli.run((tmp_path / "loop").resolve) in (0, 1)  # Python 3.13 says nothing at this point
    err = capsys.readouterr().err
    assert err == "" or (str(tmp_path / "loop") in err and len(err.splitlines()) == 1)


# ----------------------------------------------------------------------------------------------- a reader that has gone


PROGRAM = """
import sys
from pathlib import Path
from dfbench import cli
from dfbench.errors import InputError

def main():
    parser = cli.ArgumentParser("What it does.")
    parser.add_argument("--output")
    parser.add_argument("--fail", action="store_true")
    args = parser.parse_args()
    for number in range(3):
        print("result", number)
    Path(args.output).write_text("done")
    if args.fail:
        raise InputError("One image has no answer.")

sys.exit(cli.run(main))
"""


def run_program(stdout: int, *arguments: object, unbuffered: bool) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, cwd=REPOSITORY)


@pytest.fixture
def closed_pipe():
    """A pipe that nobody reads any more, as that to `head -1` once it has its line."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("unbuffered", [False, True])
def test_results_are_written_when_nobody_reads_what_is_printed(tmp_path, closed_pipe, unbuffered):
    output = tmp_path / "output"
    done = run_program(closed_pipe, "--output", output, unbuffered=unbuffered)
    assert (done.returncode, done.stderr, output.read_text()) == (0, "", "done")
    done = run_program(closed_pipe, "--output", output, "--fail", unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (1, "error: One image has no answer.\n")
    done = run_program(closed_pipe, "--help", unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_what_is_printed_into_a_full_disk_is_told(tmp_path, unbuffered):
    output = tmp_path / "output"
    with open("/dev/full", "w") as full:
        done = run_program(full, "--output", output, unbuffered=unbuffered)
    assert (done.returncode, output.read_text()) == (1, "done")
    assert done.stderr.startswith("error: standard output: No space left on device. ")
    assert len(done.stderr.splitlines()) == 1
