"""The scoring run: workers, progress, memory that runs out; with fakes that answer at once."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from dfbench.data.annotations import Sample
from dfbench.errors import InputError
from dfbench.models.base import SequenceSize
from dfbench.predictions.reader import read_detector
from dfbench.predictions.schema import read_info
from dfbench.scoring.batching import UNKNOWN, make_plan, shard
from dfbench.scoring.engine import PreparedBatch, _guarded


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
    import dfbench.scoring.engine

    load_image, parent = dfbench.scoring.engine.load_image, os.getpid()

    def load_or_die(path, **options):
        if path.name == "8.png" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return load_image(path, **options)

    monkeypatch.setattr("dfbench.scoring.engine.load_image", load_or_die)
    finished = run("--workers", 1, "--batch_size", 2)
    assert finished.status == 1
    assert finished.err.startswith("error: image workers: found ")
    assert "fewer --workers" in finished.err
    assert len(finished.err.splitlines()) == 1
    assert run("--batch_size", 2).status == 0
    assert len(read_detector(output).frame) == 12


@pytest.mark.slow
def test_a_bug_inside_a_worker_keeps_its_traceback(run, monkeypatch):
    def fail(path, **options):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("dfbench.scoring.engine.load_image", fail)
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError.*a bug of ours"):
        run("--workers", 1)


@pytest.mark.parametrize(
    "error", [RuntimeError("received 0 items of ancdata"), FileNotFoundError(2, "No such file"), EOFError()]
)
def test_what_the_loader_meets_when_a_worker_is_gone(error):
    def batches():
        yield PreparedBatch(["1.jpg"])
        raise error

    guarded = _guarded(batches(), workers=1)
    assert next(guarded).images == ["1.jpg"]
    with pytest.raises(InputError, match=r"image workers: found .*fewer --workers"):
        next(guarded)
    with pytest.raises(type(error)):
        list(_guarded(batches(), workers=0))


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
    assert last.startswith(f"error: {photo_set.samples[0].image}: found not enough GPU memory for a single image")


# ---------------------------------------------------------------------------------------------------------------- plan


def plan_of(sizes: list[tuple[int, int]], **options) -> list[list[int]]:
    samples = [Sample(f"{i}.jpg", "A", "Real?") for i in range(len(sizes))]
    plan = make_plan(
        samples, [SequenceSize(*cost) for cost in sizes], **{"token_budget": 100, "batch_size": None, **options}
    )
    for batch in plan.batches:
        assert batch.total.tokens <= plan.shape.tokens
        assert batch.total.vision <= plan.shape.vision
        assert sum(cost != UNKNOWN for cost in batch.sizes) <= plan.shape.prompts
    return [[int(sample.image[:-4]) for sample in batch.samples] for batch in plan.batches]


def test_an_image_goes_into_the_first_batch_with_room():
    # Two of 40 are at most 100, three are not; 40 and 60 just fit; 30 has no room beside 40 + 40, 10 has.
    assert plan_of([(40, 4), (40, 4), (40, 4), (60, 6), (30, 3), (10, 1)]) == [[0, 1, 5], [2, 3], [4]]


def test_few_batches_are_open_side_by_side():
    """The ninth large image closes the fullest batch: the small one after it goes into the next."""
    large = [(91, 0), *[(90, 0)] * 8]
    assert plan_of([*large, (9, 0)])[:2] == [[0], [1, 9]]
    assert plan_of([*large[:8], (9, 0)])[0] == [0, 8]


def test_mixed_sizes_fill_their_batches():
    sizes = np.random.default_rng(0).choice([1405, 360, 200, 330], 2000, p=[0.66, 0.15, 0.1, 0.09])
    samples = [Sample(f"{i}.jpg", "A", "Real?") for i in range(len(sizes))]
    sizes = [SequenceSize(int(size), 4 * int(size)) for size in sizes]
    plan = make_plan(samples, sizes, token_budget=32768, batch_size=None)
    assert plan.filled > 0.98


def test_an_image_above_the_budget_has_a_batch_to_itself():
    assert plan_of([(10, 1), (500, 50), (10, 1)]) == [[0, 2], [1]]


def test_batch_size_bounds_the_images():
    assert plan_of([(10, 1)] * 7, batch_size=3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_images_of_many_patches_fill_a_batch_too():
    """On average a token has one patch, so 100 tokens have a budget of 103; 60 + 60 patches are too many."""
    assert plan_of([(10, 60), (10, 60), (100, 0), (100, 100)]) == [[0], [1], [2], [3]]


def test_images_that_cannot_be_used_cost_nothing():
    assert plan_of([(60, 6), (0, 0), (0, 0), (60, 6)]) == [[0, 1, 2], [3]]
    assert plan_of([(0, 0)] * 3) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("sizes", "uniform"),
    [
        ([(10, 4)] * 3, True),
        ([(10, 4), (0, 0), (10, 4)], True),  # what cannot be used is never laid out
        ([(10, 4), (9, 4)], False),
        ([(10, 4), (10, 5)], False),
    ],
)
def test_a_run_is_uniform_if_all_its_prompts_are_alike(sizes, uniform):
    """Also where every batch holds one image, so that the largest fills its batch."""
    samples = [Sample(f"{i}.jpg", "A", "Real?") for i in range(len(sizes))]
    plan = make_plan(samples, [SequenceSize(*cost) for cost in sizes], token_budget=100, batch_size=1)
    assert plan.shape.uniform is uniform


def test_batches_are_shared_out_evenly():
    sizes = [9, 5, 4, 3, 3, 2, 1]
    shares = shard([0, 1, 2, 3, 4, 5, 6], sizes, 3)
    # The costliest first, to whoever has least: 9 | 5 4 | 3 3 2 1 -> 9, 9, 9.
    assert sorted(sum(sizes[i] for i in share) for share in shares) == [9, 9, 9]
    assert sorted(i for share in shares for i in share) == [0, 1, 2, 3, 4, 5, 6]
    assert all(share == sorted(share) for share in shares)


def test_more_processes_than_batches():
    assert shard([4], [0, 0, 0, 0, 7], 3) == [[4], [], []]
    assert shard([], [1, 2], 2) == [[], []]
