"""The scoring run: workers, progress, memory that runs out; with fakes that answer at once."""

import gc
import multiprocessing
import os
import signal
import time

import pytest
import torch

from dfbench.predictions.reader import read_detector
from dfbench.predictions.schema import read_info


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "agent.csv"


@pytest.fixture
def run(evaluate, fake_model, photo_set, output, tmp_path):
    usual = ("--model_path", tmp_path, "--dataset_path", photo_set.messages, "--image_root", photo_set.root)
    return lambda *more: evaluate(*usual, "--output_csv", output, *more)


@pytest.mark.parametrize("budget", [60, 120, 200, 300])
def test_rows_stand_in_annotation_order_whatever_the_batches(run, output, photo_set, fake_model, budget):
    """Questions differ in length, so that images overtake others into a batch with a little room."""
    assert run("--token_budget", budget, "--batch_size", 12).status == 0
    assert read_detector(output).frame["image"].tolist() == [sample.image for sample in photo_set.samples]
    assert len(fake_model.seen) == read_info(output)["batches"] > 1


# ------------------------------------------------------------------------------------------------------------- workers


def test_worker_processes_change_nothing(run, output):
    assert run("--workers", 0, "--batch_size", 2).status == 0
    expected = output.read_bytes()
    assert run("--workers", 2, "--batch_size", 2, "--overwrite").status == 0
    assert output.read_bytes() == expected


def test_a_worker_that_is_killed_is_one_line(run, output, monkeypatch):
    """As by the system when memory runs out. What was scored stays."""
    import dfbench.scoring.loader

    load_image, parent = dfbench.scoring.loader.load_image, os.getpid()

    def load_or_die(path, **options):
        if path.name == "8.png" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return load_image(path, **options)

    monkeypatch.setattr("dfbench.scoring.loader.load_image", load_or_die)
    finished = run("--workers", 1, "--batch_size", 2)
    assert finished.status == 1
    assert finished.err.startswith("error: image workers: one of them is gone (")
    assert "fewer --workers" in finished.err
    assert len(finished.err.splitlines()) == 1
    assert run("--batch_size", 2).status == 0
    assert len(read_detector(output).frame) == 12


def test_a_worker_that_is_killed_while_weights_load_is_not_blamed_on_them(run, output, fake_model, monkeypatch):
    """torch's own handler would raise in the middle of the loading, whose errors are the checkpoint's."""
    import dfbench.scoring.run
    from dfbench.models.base import blame

    load_scorer = dfbench.scoring.run.load_scorer

    def kill_and_load(prompt, **options):
        with blame(prompt.checkpoint, "its weights cannot be loaded", "Download them again."):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(0.5)
            return load_scorer(prompt, **options)

    monkeypatch.setattr("dfbench.scoring.run.load_scorer", kill_and_load)
    finished = run("--workers", 2, "--batch_size", 1)
    assert finished.status == 1
    assert finished.err.startswith("error: image workers: one of them is gone (")
    assert len(finished.err.splitlines()) == 1


def test_ctrl_c_while_workers_start_is_heard_when_they_have_started(run, monkeypatch):
    """An iterator over workers that is broken off while it is made cannot end them, and complains at its own end."""
    start, complaints = multiprocessing.process.BaseProcess.start, []

    def interrupted(process):
        start(process)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", interrupted)
    monkeypatch.setattr("sys.unraisablehook", complaints.append)
    finished = run("--workers", 2, "--batch_size", 2)
    gc.collect()
    assert (finished.status, finished.err) == (130, INTERRUPTED)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert complaints == []
    assert not multiprocessing.active_children()


INTERRUPTED = "interrupted; what was written stays, and the same command goes on from there\n"


def test_a_model_that_cannot_be_run_names_its_folder(run, output, fake_model, tmp_path):
    """As where a config gives rotary embeddings other widths than the weights have."""

    def fail(total: int):
        raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to 8\nmore")

    fake_model.logits = fail
    finished = run()
    assert finished.status == 1
    assert finished.err == (
        f"error: {tmp_path}: its model cannot be run ('split_with_sizes expects split_sizes to sum exactly to 8'). "
        f"Download the whole folder again.\n"
    )


@pytest.mark.slow
def test_a_bug_inside_a_worker_keeps_its_traceback(run, monkeypatch):
    def fail(path, **options):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("dfbench.scoring.loader.load_image", fail)
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError.*a bug of ours"):
        run("--workers", 1)


# --------------------------------------------------------------------------------------------------------------- clocks


def test_speed_leaves_start_up_out(run, output, fake_model):
    """12 images in batches of 4: the first takes 0.5 s (a model that compiles), each later image 0.02 s."""
    logits, calls = fake_model.logits, []

    def slow(total: int):
        time.sleep(0.02 if calls else 0.5)
        calls.append(total)
        return logits(total)

    fake_model.logits = slow
    assert run("--batch_size", 4).status == 0
    info = read_info(output)
    # 8 images in 8 x 0.02 s and a little more; with start-up it would be 12 in 0.72 s, 17 a second.
    assert 20 < info["images_per_second"] <= 50
    assert 0.5 <= info["startup_seconds"] < 10


def test_a_run_of_one_batch_has_a_speed(run, output):
    assert run("--batch_size", 12).status == 0
    assert read_info(output)["images_per_second"] > 0


# ------------------------------------------------------------------------------------------------------------ progress


def test_progress_is_shown_on_a_terminal_only(run, monkeypatch):
    assert "scoring" not in run().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = run("--overwrite").err
    assert "scoring" in shown
    assert "12/12" in shown
    assert "img/s" in shown
    assert "scoring" not in run("--overwrite", "--quiet").err


def test_progress_of_a_resumed_run_begins_where_it_stopped(run, output, monkeypatch):
    run("--batch_size", 4)
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:9]))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = run("--batch_size", 4).err
    assert " 0/12" not in shown
    assert " 8/12" in shown
    assert "12/12" in shown


# -------------------------------------------------------------------------------------------------------------- memory


def room_for(fake_model, images: int) -> None:
    """Let forward passes of more than `images` images run out of memory."""
    logits = fake_model.logits

    def limited(total: int):
        if fake_model.seen[-1] > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(total)

    fake_model.logits = limited


@pytest.mark.parametrize("images", [1, 3, 7])
def test_a_gpu_that_is_too_small_gets_smaller_pieces(run, output, fake_model, caplog, images):
    run("--batch_size", 12)
    expected = output.read_bytes()
    room_for(fake_model, images)
    finished = run("--batch_size", 12, "--overwrite")
    assert finished.status == 0, finished.err
    assert output.read_bytes() == expected
    assert "out of GPU memory" in caplog.text


def test_memory_that_runs_out_later_loses_no_batch(run, output, fake_model):
    run("--batch_size", 4)
    expected = output.read_bytes()
    calls, logits = [], fake_model.logits

    def once(total: int):
        calls.append(total)
        if len(calls) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(total)

    fake_model.logits = once
    fake_model.seen.clear()
    assert run("--batch_size", 4, "--overwrite").status == 0
    assert output.read_bytes() == expected
    # 4, then 4 that fail; from there on in halves.
    assert fake_model.seen == [4, 4, 2, 2, 2, 2]


def test_a_single_image_that_does_not_fit_ends_the_run(run, output, fake_model, photo_set):
    room_for(fake_model, 0)
    finished = run("--batch_size", 4)
    assert finished.status == 1
    last = finished.err.splitlines()[-1]
    assert last.startswith(f"error: {photo_set.samples[0].image}: not enough GPU memory for a single image")
