"""What an earlier run left: what is gone on with, what is done again, what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dfbench.data.annotations import Sample
from dfbench.predictions.reader import read_detector
from dfbench.scoring.resume import questions_identity


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "agent.csv"


@pytest.fixture
def images(photo_set, tmp_path):
    """A copy of the photo set's images that a test may spoil."""
    shutil.copytree(photo_set.root / "DFBench", tmp_path / "DFBench")
    return tmp_path


@pytest.fixture
def run(evaluate, fake_model, photo_set, output, tmp_path):
    usual = ("--model_path", tmp_path, "--dataset_path", photo_set.messages, "--image_root", photo_set.root)
    return lambda *more: evaluate(*usual, "--output_csv", output, *more)


def test_an_image_that_was_mended_is_scored(run, output, images, photo_set):
    """And the rest ends as if nothing had been wrong."""
    assert run().status == 0
    expected = output.read_bytes()
    assert run("--overwrite", "--image_root", images).status == 0
    victim = images / photo_set.samples[3].image
    data = victim.read_bytes()
    victim.write_bytes(b"")
    broken = run("--overwrite", "--image_root", images, "--batch_size", 4)
    assert ": 1 images without an answer" in broken.err
    assert run("--image_root", images, "--batch_size", 4).status == 1  # still broken
    victim.write_bytes(data)
    assert run("--image_root", images, "--batch_size", 4).status == 0
    assert output.read_bytes() == expected
    assert not output.with_name("agent.errors.csv").exists()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"question": "<image>Something else?"}, "answers to other questions"),
        ({"label": "B"}, "DFBench/Flick8k/1.jpg has label 'A', and the annotations 'B'"),
    ],
)
def test_corrected_annotations_are_refused(run, output, write_rows, photo_set, tmp_path, change, found):
    assert run().status == 0
    before = output.read_bytes()
    samples = [replace(photo_set.samples[0], **change), *photo_set.samples[1:]]
    if "question" in change:
        samples = [replace(sample, **change) for sample in photo_set.samples]
    finished = run("--dataset_path", write_rows(tmp_path / "corrected.json", samples))
    assert finished.status == 1
    assert found in finished.err
    assert output.read_bytes() == before
    assert run("--dataset_path", tmp_path / "corrected.json", "--overwrite").status == 0


@pytest.mark.parametrize(("limit", "killed"), [([], False), ([], True), (["--limit", 5], False)])
def test_one_question_that_another_image_has_as_well_is_refused(
    run, output, write_rows, photo_set, tmp_path, limit, killed
):
    """The distinct questions are the same as before."""
    assert run(*limit, "--batch_size", 2).status == 0
    if killed:
        info = json.loads(output.with_suffix(".json").read_text())
        output.with_suffix(".json").write_text(json.dumps({"identity": info["identity"], "finished": False}))
        output.write_text("".join(output.read_text().splitlines(keepends=True)[:5]))
    before = output.read_bytes()
    other = photo_set.samples[1].question
    samples = [replace(photo_set.samples[0], question=other), *photo_set.samples[1:]]
    finished = run("--dataset_path", write_rows(tmp_path / "corrected.json", samples), "--batch_size", 2)
    assert finished.status == 1
    assert "answers to other questions" in finished.err
    assert output.read_bytes() == before


def test_an_error_that_would_come_again_is_not_tried_again(run, output, images, photo_set, fake_model):
    """A truncated image can be read, but not in a strict run."""
    victim = images / photo_set.samples[0].image
    victim.write_bytes(victim.read_bytes()[:-200])
    strict = ("--image_root", images, "--batch_size", 4, "--strict_images")
    assert run(*strict).status == 1
    before, fake_model.loads = output.read_bytes(), 0
    assert run(*strict).status == 1
    assert (fake_model.loads, output.read_bytes()) == (0, before)


def test_a_repeated_command_keeps_the_speed(run, output):
    assert run().status == 0
    before = json.loads(output.with_suffix(".json").read_text())
    assert run().status == 0
    after = json.loads(output.with_suffix(".json").read_text())
    assert before["images_per_second"] > 0
    assert {key: after[key] for key in before if key != "written"} == {
        key: before[key] for key in before if key != "written"
    }


@pytest.mark.parametrize("metadata", [None, "{}", '{"identity": 3, "detector": "x"}'])
def test_rows_of_an_unknown_run_are_refused(run, output, metadata):
    assert run().status == 0
    info = output.with_suffix(".json")
    info.unlink() if metadata is None else info.write_text(metadata)
    finished = run()
    assert finished.status == 1
    assert len(finished.err.splitlines()) == 1
    assert "metadata" in finished.err


@pytest.mark.parametrize(
    ("key", "value"), [("answered", "x"), ("answered", None), ("questions", 3), ("questions", [{}])]
)
def test_metadata_that_were_edited_are_refused(run, output, key, value):
    assert run().status == 0
    info = output.with_suffix(".json")
    content = json.loads(info.read_text())
    content["identity"][key] = value
    info.write_text(json.dumps(content))
    finished = run()
    assert finished.status == 1
    assert len(finished.err.splitlines()) == 1
    assert "holds answers to other questions" in finished.err


def test_a_start_that_failed_does_not_block_the_next(run, output, tmp_path):
    output.parent.mkdir()
    output.with_suffix(".json").write_text(json.dumps({"identity": {"model_fingerprint": "other"}}))
    assert run().status == 0


@pytest.mark.parametrize("name", ["agent", "agent.json", "agent.csv.gz", ""])
def test_an_output_that_is_no_csv(run, output, name):
    finished = run("--output_csv", output.parent / name if name else "")
    assert finished.status == 1
    assert "expected a name that ends in .csv. Name another --output_csv" in finished.err


def test_an_output_in_the_place_of_something_else(run, output, photo_set, write_rows):
    """The metadata of x.csv is x.json, where annotations may lie."""
    output.parent.mkdir()
    rows = write_rows(output.parent / "test.json", photo_set.samples)
    before = rows.read_bytes()
    assert "this file is read as well" in run("--dataset_path", rows, "--output_csv", rows.with_suffix(".csv")).err
    other = output.parent / "agent.json"
    other.write_text('{"mine": 1}')
    assert "agent.json: no run wrote this file" in run().err
    assert (rows.read_bytes(), other.read_text()) == (before, '{"mine": 1}')


def test_a_fused_file_is_replaced_with_overwrite_only(run, output):
    output.parent.mkdir()
    output.write_text("image,label,answer,logit_A,logit_B,prob_A,prob_B,prob_B_x\n")
    output.with_suffix(".json").write_text('{"fusion": "mean_prob"}')
    before = output.read_bytes()
    refused = run()
    assert refused.status == 1
    assert f"{output}: its scores are those of a fusion. Name another --output_csv" in refused.err
    assert output.read_bytes() == before
    assert run("--overwrite").status == 0
    assert not read_detector(output).is_fusion


def test_a_folder_as_output_and_a_file_as_folder(run, output, tmp_path):
    output.mkdir(parents=True)
    assert "this is a folder" in run().err
    (tmp_path / "file").write_text("")
    assert "this folder cannot be made" in run("--output_csv", tmp_path / "file" / "a.csv").err


def test_questions_count_up_to_a_bound():
    samples = [Sample(f"{i}.jpg", "A", f"Real {i % 3}?") for i in range(9)]
    assert len(questions_identity(samples)) == 3
    assert questions_identity(samples) == questions_identity(samples[::-1])
    assert questions_identity([Sample("x", "A", f"{i}?") for i in range(1001)]) == []


@pytest.mark.parametrize("begun_with", ["packed", "transformers"])
def test_rows_of_two_engines_do_not_mix(run, output, begun_with):
    assert run("--limit", 5).status == 0
    info = json.loads(output.with_suffix(".json").read_text())
    assert info["identity"]["engine"] == "packed"
    info["identity"]["engine"] = begun_with
    output.with_suffix(".json").write_text(json.dumps(info))
    finished = run()
    assert finished.status == (1 if begun_with == "transformers" else 0)
    assert ("begun with engine transformers, and this run has packed" in finished.err) == bool(finished.status)


def test_rows_of_an_earlier_version_are_refused(run, output):
    """Its fingerprint of the weights was made of less, so that another model's rows might be taken over."""
    assert run("--limit", 5).status == 0
    info = json.loads(output.with_suffix(".json").read_text())
    info["identity"]["model_fingerprint"] = "0123456789abcdef"
    output.with_suffix(".json").write_text(json.dumps(info))
    before = output.read_bytes()
    finished = run()
    assert finished.status == 1
    assert f"{output}: an earlier version began it" in finished.err
    assert "Name another --output_csv, or --overwrite it." in finished.err
    assert output.read_bytes() == before
    assert run("--overwrite").status == 0


def test_a_tensor_or_a_letter_of_the_tokenizer_that_changed_is_another_model(run, output, tmp_path):
    assert run("--limit", 5).status == 0
    before = output.read_bytes()
    (tmp_path / "tokenizer.json").write_text('{"A": 33, "B": 32}')
    assert "begun with model_fingerprint " in run().err
    (tmp_path / "tokenizer.json").unlink()
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    assert "begun with model_fingerprint " in run().err
    assert output.read_bytes() == before


def test_growing_the_limit_keeps_what_is_there(run, output, fake_model):
    assert run("--limit", 5).status == 0
    seen = len(fake_model.seen)
    assert run("--limit", 12).status == 0
    assert len(read_detector(output).frame) == 12
    assert len(fake_model.seen) > seen
