"""Resuming: whatever a kill leaves on the disk, the same command ends with the same bytes."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dfbench.data.annotations import Sample
from dfbench.errors import InputError
from dfbench.predictions.schema import COLUMNS
from dfbench.predictions.writer import (
    RecordWriter,
    consolidate,
    only_run,
    part_path,
    part_paths,
    read_tables,
)

HEADER = ",".join(COLUMNS) + "\n"
SUFFIXES = ("csv", "errors.csv", "warnings.csv")
BATCH = 3


@pytest.fixture
def damaged(photo_set, tmp_path):
    """The photo set with three images that fail and two that are cut off, so that all three files have rows."""
    root = shutil.copytree(photo_set.root, tmp_path / "damaged")
    for i in (1, 6, 10):
        (root / photo_set.samples[i].image).unlink()
    for i in (0, 8):
        path = root / photo_set.samples[i].image
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    return root


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out" / "agent.csv"


@pytest.fixture
def run(evaluate, fake_model, photo_set, damaged, output, tmp_path, monkeypatch):
    """A function: further arguments -> a scoring run on the damaged photo set, in batches of three."""
    # Tables and versions are of no interest here, and cost ten times what the run does.
    monkeypatch.setattr("dfbench.evaluation.tables.accuracy_lines", lambda _: [])
    monkeypatch.setattr("dfbench.scoring.run.describe_software", lambda _: {})
    usual = ("--model_path", tmp_path / "model", "--dataset_path", photo_set.messages, "--image_root", damaged)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):  # fake_model's
        shutil.copy(tmp_path / name, tmp_path / "model")
    return lambda *more: evaluate(*usual, "--output_csv", output, "--batch_size", BATCH, *more)


def snapshot(output: Path) -> dict[str, bytes]:
    paths = {suffix: output.with_name(f"{output.stem}.{suffix}") for suffix in SUFFIXES}
    return {suffix: path.read_bytes() for suffix, path in paths.items() if path.exists()}


def restore(output: Path, files: dict[str, bytes]) -> None:
    for suffix in SUFFIXES:
        path = output.with_name(f"{output.stem}.{suffix}")
        path.unlink(missing_ok=True)
        if suffix in files:
            path.write_bytes(files[suffix])


def images_of(content: bytes) -> list[str]:
    return [row[0] for row in csv.reader(content.decode().splitlines()[1:])]


# -------------------------------------------------------------------------------------------------- kills, byte by byte


def killed(
    files: dict[str, bytes], batches: list[list[str]], batch: int, writing: int, share: float
) -> dict[str, bytes]:
    """The three files as a kill leaves them during a batch: those before are whole; of this one, warnings are written
    first, then errors, then rows, and the `writing`-th (0 to 2) is cut after `share` of its bytes.
    """
    before = {image for one in batches[:batch] for image in one}
    left = {}
    for order, suffix in enumerate(("warnings.csv", "errors.csv", "csv")):
        lines = files[suffix].splitlines(keepends=True)
        images = images_of(files[suffix])
        whole = [line for line, image in zip(lines[1:], images, strict=True) if image in before]
        now = b"".join(line for line, image in zip(lines[1:], images, strict=True) if image in batches[batch])
        written = now if order < writing else now[: round(share * len(now))] if order == writing else b""
        left[suffix] = lines[0] + b"".join(whole) + written
    return left


def test_a_kill_at_any_byte_changes_nothing(run, output, photo_set):
    assert run().status == 1, "three images have no answer"
    expected = snapshot(output)
    assert {suffix: len(images_of(content)) for suffix, content in expected.items()} == {
        "csv": 9, "errors.csv": 3, "warnings.csv": 2,
    }  # fmt: skip
    keys = [sample.image for sample in photo_set.samples]
    batches = [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)]
    rng = np.random.default_rng(0)
    for _ in range(30):
        restore(output, killed(expected, batches, rng.integers(len(batches)), rng.integers(3), rng.random()))
        assert run().status == 1
        assert snapshot(output) == expected


@pytest.mark.parametrize("suffix", ["csv", "errors.csv"])
def test_a_row_that_lost_its_cells_is_scored_again(run, output, suffix):
    """As after an editor's slip in the middle of the file."""
    run()
    expected = snapshot(output)
    header, first, *rest = expected[suffix].split(b"\n")
    for damage in (first.split(b",")[0], b"", b"\xff\xfe", b"a\rb"):
        restore(output, expected | {suffix: b"\n".join([header, damage, *rest])})
        run()
        assert snapshot(output) == expected


@pytest.mark.parametrize("suffix", ["csv", "errors.csv"])
def test_a_file_that_lost_its_end_is_scored_again_from_there(run, output, suffix):
    """As after a power cut, when the disk has one file but not the other. (A lost warning alone cannot be noticed.)"""
    run()
    expected = snapshot(output)
    rng = np.random.default_rng(1)
    for size in [0, 1, *rng.integers(0, len(expected[suffix]), 10), len(expected[suffix]) - 1]:
        restore(output, expected | {suffix: expected[suffix][:size]})
        run()
        assert snapshot(output) == expected


def test_only_batches_that_are_not_done_are_scored(run, output, fake_model):
    run()
    content = output.read_bytes()
    fake_model.seen.clear()
    output.write_bytes(content[:-5])
    run()
    # The last batch has two images with an answer; it is scored in the same company as before.
    assert fake_model.seen == [2]
    assert output.read_bytes() == content


def test_an_interrupt_keeps_what_is_written(run, output, fake_model):
    run()
    expected = snapshot(output)
    calls, logits = [], fake_model.logits

    def interrupt(total: int):
        calls.append(total)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return logits(total)

    fake_model.logits = interrupt
    finished = run("--overwrite")
    assert finished.status == 130
    assert "the same command goes on" in finished.err
    fake_model.logits = logits
    run()
    assert snapshot(output) == expected


def test_the_metadata_say_that_a_killed_run_is_not_finished(run, output, fake_model):
    def interrupt(total: int):
        raise KeyboardInterrupt

    fake_model.logits, logits = interrupt, fake_model.logits
    run()
    assert json.loads(output.with_suffix(".json").read_text())["finished"] is False
    fake_model.logits = logits
    run()
    assert json.loads(output.with_suffix(".json").read_text())["finished"] is True


HOLD_AND_WAIT = """
import multiprocessing, sys, time
from pathlib import Path
from dfbench.predictions.writer import RecordWriter, only_run
path = Path(sys.argv[1])
with only_run(path), RecordWriter(path):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["agent.csv", "agent.part3.csv"])  # the latter by a process that outlived its torchrun
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_file_that_another_run_is_writing_to_is_refused_until_that_run_is_gone(run, output, name, more):
    """Image workers, which are forked while the lock is held, may outlive the run and do not keep the lock."""
    run()
    expected = snapshot(output)
    command = [sys.executable, "-c", HOLD_AND_WAIT, output.with_name(name)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(other.stdout.readline())
    try:
        finished = run(*more)
        assert finished.status == 1
        assert finished.err.count("\n") == 1
        assert f"error: Another run is writing to {output.with_name(name)}." in finished.err
        assert snapshot(output) == expected
        other.kill()
        other.wait()
        os.kill(worker, 0)  # is still there
        assert run(*more).status == 1  # its images are damaged; as before
    finally:
        other.kill()
        os.kill(worker, signal.SIGKILL)
        other.wait()
    assert snapshot(output) == expected
    assert part_paths(output) == []
    assert not list(output.parent.glob(".*")), "a lock is left"


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EROFS])
def test_a_file_system_without_locks_is_none_to_complain_of(output, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_run(output), RecordWriter(output) as writer:
        write_batch(writer, BATCHES[0])
    assert consolidate(output, BATCHES) == {0}


def test_leftover_temporary_files_do_not_matter(run, output):
    run()
    expected = snapshot(output)
    output.with_name("agent.csv.tmp").write_text("half of a fi")
    output.with_suffix(".json.tmp").write_text("{")
    restore(output, {"csv": expected["csv"][:200]})
    run()
    assert snapshot(output) == expected


# ------------------------------------------------------------------------------------------------- more, fewer, others


def test_a_growing_limit_goes_on(run, output, fake_model):
    run()
    expected = snapshot(output)
    for limit in (4, 5, 9):
        run(*(["--overwrite"] if limit == 4 else []), "--limit", limit)
        assert len(images_of(output.read_bytes())) < 9
    fake_model.seen.clear()
    run()
    assert sum(fake_model.seen) == 2
    assert snapshot(output) == expected


def test_other_annotations_are_refused_and_nothing_is_touched(run, output, damaged, tmp_path, write_rows, photo_set):
    run()
    before = snapshot(output)
    others = [Sample(f"DFBench/Kolors/{i}.jpg", "B", "Real?") for i in range(3)]
    (damaged / others[0].image).touch()
    finished = run("--dataset_path", write_rows(tmp_path / "others.json", others))
    assert finished.status == 1
    assert f"error: {output} holds 12 images that this run does not have, such as " in finished.err
    assert "--overwrite" in finished.err
    finished = run("--limit", 5)
    assert "holds 7 images that this run does not have" in finished.err
    assert snapshot(output) == before


def test_another_model_is_refused(run, output, tmp_path):
    run()
    before = snapshot(output)
    save_file({"other": np.ones(1)}, tmp_path / "model" / "model.safetensors")
    finished = run()
    assert finished.status == 1
    assert "begun with model_fingerprint " in finished.err
    assert len(finished.err.splitlines()) == 1
    assert snapshot(output) == before


def test_the_same_weights_in_another_folder_go_on(run, output, tmp_path):
    run()
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    assert "all of them were there already" in run("--model_path", tmp_path / "moved").out


@pytest.mark.parametrize(
    ("arguments", "key"), [(["--dtype", "bfloat16"], "dtype"), (["--strict_images"], "strict_images")]
)
def test_other_settings_are_refused(run, output, arguments, key):
    run()
    before = snapshot(output)
    finished = run(*arguments)
    assert finished.status == 1
    assert f"{output}: it was begun with {key} " in finished.err
    assert snapshot(output) == before


def test_metadata_that_cannot_be_read_are_named(run, output):
    run()
    output.with_suffix(".json").write_text("{")
    finished = run()
    assert finished.status == 1
    assert "agent.json holds broken JSON" in finished.err


@pytest.mark.parametrize("content", ["image,answer\nx.jpg,A\n", "hello\n", "\n", "image;label\n"])
def test_a_file_with_another_header_is_refused(run, output, content):
    output.parent.mkdir()
    output.write_text(content)
    finished = run()
    assert finished.status == 1
    assert f"error: {output} has the header " in finished.err
    assert output.read_text() == content


def test_overwrite_starts_over(run, output, fake_model, tmp_path):
    run()
    expected = snapshot(output)
    output.write_text("hello\n")
    output.with_name("agent.errors.csv").write_text("hello\n")
    part_path(output, 3).write_text("hello\n")
    save_file({"other": np.ones(1)}, tmp_path / "model" / "model.safetensors")
    fake_model.seen.clear()
    run("--overwrite")
    assert sum(fake_model.seen) == 9
    assert snapshot(output) == expected
    assert part_paths(output) == []


def test_overwrite_forgets_earlier_errors(run, output, photo_set, damaged):
    run()
    shutil.copytree(photo_set.root, damaged, dirs_exist_ok=True)
    assert run("--overwrite").status == 0
    assert snapshot(output).keys() == {"csv"}


# --------------------------------------------------------------------------------------------- several processes' parts

BATCHES = [[f"{batch}/{i}.jpg" for i in range(3)] for batch in range(7)]


def write_batch(writer: RecordWriter, batch: list[str]) -> None:
    """Of three images, the first is truncated, the last fails."""
    rows = [(image, "A", "A", "1.0", "0.0", "0.7", "0.3") for image in batch[:2]]
    writer.write(rows, [(batch[2], "file is missing")], [(batch[0], "truncated")])


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    """The files of one process that did all batches."""
    path = tmp_path / "whole" / "agent.csv"
    path.parent.mkdir()
    with RecordWriter(path) as writer:
        for batch in BATCHES:
            write_batch(writer, batch)
    return snapshot(path)


def write_parts(output: Path, shares: list[list[int]]) -> None:
    output.parent.mkdir(exist_ok=True)
    for rank, share in enumerate(shares):
        with RecordWriter(part_path(output, rank)) as writer:
            for index in share:
                write_batch(writer, BATCHES[index])


def test_parts_are_brought_together_in_order(output, whole):
    write_parts(output, [[0, 4, 6], [1, 5], [2, 3]])
    assert consolidate(output, BATCHES) == set(range(7))
    assert snapshot(output) == whole
    assert part_paths(output) == []
    assert [len(table) for table in read_tables(output)] == [14, 7, 7]


def test_the_files_have_the_order_that_is_asked_for(output, whole):
    write_parts(output, [[0, 4, 6], [1, 5], [2, 3]])
    order = [image for batch in BATCHES for image in batch]
    assert consolidate(output, BATCHES[::-1], order) == set(range(7))
    assert snapshot(output) == whole


def test_parts_of_more_and_of_fewer_processes(output, whole):
    """Killed on three GPUs, killed again on one, finished on two."""
    write_parts(output, [[0], [5], [2]])
    assert consolidate(output, BATCHES) == {0, 2, 5}
    with RecordWriter(output) as writer:
        write_batch(writer, BATCHES[1])
    assert consolidate(output, BATCHES) == {0, 1, 2, 5}
    write_parts(output, [[3, 6], [4]])
    assert consolidate(output, BATCHES) == set(range(7))
    assert snapshot(output) == whole


def test_a_part_that_was_cut_off_loses_its_last_batch_only(output, whole):
    write_parts(output, [[0, 2], [1]])
    path = part_path(output, 0)
    path.write_bytes(path.read_bytes()[:-3])
    assert consolidate(output, BATCHES) == {0, 1}
    assert [len(table) for table in read_tables(output)] == [4, 2, 2]


def stop_after(steps: int, monkeypatch) -> None:
    """Let files be put in place or removed `steps` times; the next attempt is a kill."""
    left = iter(range(steps))

    def counted(original):
        def call(*arguments, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("steps", range(12))
def test_a_kill_while_parts_are_brought_together_loses_nothing(output, whole, monkeypatch, steps):
    """Three files are put in place, nine of three parts removed: twelve steps."""
    write_parts(output, [[0, 4, 6], [1, 5], [2, 3]])
    with monkeypatch.context() as patch:
        stop_after(steps, patch)
        with pytest.raises(KeyboardInterrupt):
            consolidate(output, BATCHES)
    assert consolidate(output, BATCHES) == set(range(7))
    assert snapshot(output) == whole
    assert part_paths(output) == []


def test_names_with_commas_quotes_and_other_scripts(output):
    batches = [['a, "b".jpg', "图.png"], ["ü .jpg"]]
    output.parent.mkdir()
    with RecordWriter(output) as writer:
        writer.write([(image, "", "A", "", "", "0.7", "0.3") for image in batches[0]])
        writer.write([], [(batches[1][0], 'bad, "very" bad')])
    assert consolidate(output, batches) == {0, 1}
    assert [len(table) for table in read_tables(output)] == [2, 1, 0]


def test_an_unknown_image_in_the_errors_is_refused(output):
    output.parent.mkdir()
    with RecordWriter(output) as writer:
        writer.write([], [("elsewhere.jpg", "file is missing")])
    with pytest.raises(InputError, match=r"agent\.csv holds 1 image that .*, such as elsewhere\.jpg"):
        consolidate(output, BATCHES)
