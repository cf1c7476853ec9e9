"""evaluate_logit.py from the command line inwards: what it writes, what it reports, what it refuses."""

import json
import re
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from dfbench.data.annotations import Sample
from dfbench.data.images import load_image
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.predictions.reader import read_detector
from dfbench.predictions.schema import COLUMNS

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")


@pytest.fixture
def usual(photo_set, tmp_path):
    """The arguments of a run on the photo set."""
    folder = ["--image_root", photo_set.root, "--output_csv", tmp_path / "out" / "agent.csv"]
    return ["--model_path", tmp_path, "--dataset_path", photo_set.messages, *folder]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "agent.csv"


def one_error(finished) -> str:
    """The only line on stderr of a program that failed with status 1."""
    assert finished.status == 1, finished
    assert finished.err.startswith("error: ")
    assert len(finished.err.splitlines()) == 1, finished.err
    return finished.err


# ---------------------------------------------------------------------------------------------------- with real models


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_writes_what_the_scorer_says(evaluate, checkpoints, photo_set, output, agent):
    finished = evaluate(
        "--model_path", checkpoints[agent], "--dataset_path", photo_set.messages, "--image_root", photo_set.root,
        "--output_csv", output, "--batch_size", 5, agent=agent,
    )  # fmt: skip
    assert finished.status == 0, finished.err
    table = pd.read_csv(output, dtype=str)
    assert tuple(table.columns) == COLUMNS
    assert table["image"].tolist() == [sample.image for sample in photo_set.samples]
    assert table["label"].tolist() == [sample.label for sample in photo_set.samples]

    scorer = load_scorer(load_prompt(checkpoints[agent]), device="cpu", dtype="float32")
    prepared = [scorer.prompt.prepare(s.question, load_image(photo_set.path(s)).rgb) for s in photo_set.samples]
    expected = scorer.logits(scorer.prompt.collate(prepared)).numpy()
    found = table[["logit_A", "logit_B"]].to_numpy().astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    pairs = table[["prob_A", "prob_B"]].to_numpy().astype(np.float64)
    np.testing.assert_allclose(pairs.sum(axis=1), 1, atol=1e-6)
    assert (table["answer"] == np.where(pairs[:, 0] > pairs[:, 1], "A", "B")).all()


def test_both_annotation_shapes_give_the_same_file(evaluate, fake_model, photo_set, tmp_path):
    outputs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, annotations in zip(outputs, (photo_set.messages, photo_set.conversations), strict=True):
        finished = evaluate(
            "--model_path",
            tmp_path,
            "--dataset_path",
            annotations,
            "--image_root",
            photo_set.root,
            "--output_csv",
            path,
        )
        assert finished.status == 0, finished.err
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_kebab_case_and_other_protocols(evaluate, checkpoints, photo_set, output):
    finished = evaluate(
        "--model-path", checkpoints["internvl3"], f"--dataset-path={photo_set.messages}", "--image-root",
        photo_set.root, "--output-csv", output, "--batch-size=4", "--protocol", "native", "--strict-images", "--quiet",
    )  # fmt: skip
    assert finished.status == 0, finished.err
    assert json.loads(output.with_suffix(".json").read_text())["identity"]["protocol"] == "native"


def test_the_metadata_say_how_the_file_came_about(evaluate, checkpoints, photo_set, output):
    evaluate(
        "--model_path", checkpoints["internvl3"], "--dataset_path", photo_set.messages, "--image_root", photo_set.root,
        "--output_csv", output, "--limit", 4,
    )  # fmt: skip
    info = json.loads(output.with_suffix(".json").read_text())
    assert info["finished"] is True
    assert info["limit"] == 4
    assert info["rows"] == 4
    assert info["errors"] == 0
    assert info["identity"]["model"] == str(checkpoints["internvl3"])
    assert info["identity"]["adapter"] is None
    assert info["identity"]["dtype"] == "float32"
    assert info["device"]
    assert info["images_per_second"] > 0
    assert torch.__version__.startswith(info["versions"]["torch"])
    assert {"seed", "git_commit", "attention", "written"} <= info.keys()
    assert "{question}" in info["identity"]["prompt"]


def test_without_a_gpu_the_cpu_computes_in_float32(evaluate, fake_model, usual, output):
    evaluate(*usual)
    info = json.loads(output.with_suffix(".json").read_text())
    assert info["identity"]["dtype"] == "float32"
    assert "cuda" not in info["device"].lower()


# -------------------------------------------------------------------------------------------------------- what is said


def test_accuracy_by_source_is_printed(evaluate, fake_model, usual, output):
    fake_model.logits = lambda total: (1.0, 0.0)  # real, whatever it is shown
    finished = evaluate(*usual)
    assert finished.status == 0
    assert str(output) in finished.out
    # The set has 7 real images of 6 sources and 5 fake ones of 5.
    lines = [line for line in finished.out.splitlines() if "Flick8k" in line]
    assert lines, finished.out
    assert "100.0" in lines[0]
    assert any("Kolors" in line and " 0.0" in line for line in finished.out.splitlines()), finished.out
    assert finished.err == ""


def test_a_finished_run_is_not_scored_again(evaluate, fake_model, usual, output):
    evaluate(*usual)
    before, loads = output.read_bytes(), fake_model.loads
    finished = evaluate(*usual)
    assert finished.status == 0
    assert "there already" in finished.out
    assert output.read_bytes() == before
    assert fake_model.loads == loads, "weights are loaded for nothing"


def test_sources_and_limit_choose(evaluate, fake_model, usual, output):
    assert evaluate(*usual, "--sources", "Kolors", "Flick8k").status == 0
    assert read_detector(output).frame["image"].tolist() == [
        "DFBench/Flick8k/1.jpg", "DFBench/Flick8k/2.png", "DFBench/Kolors/9.jpg",
    ]  # fmt: skip
    assert evaluate(*usual, "--sources", "Kolors", "Flick8k", "--limit", 2, "--overwrite").status == 0
    assert len(read_detector(output).frame) == 2


def test_an_unknown_source_is_refused_with_those_there_are(evaluate, fake_model, usual, output):
    error = one_error(evaluate(*usual, "--sources", "Kolors", "Midjourney"))
    assert "no image of Midjourney. Correct --sources; there are CLIVE, CSIQ, Flick8k" in error
    assert not output.exists()


def test_batch_size_bounds_the_images_of_a_forward_pass(evaluate, fake_model, usual):
    evaluate(*usual, "--batch_size", 5)
    assert fake_model.seen == [5, 5, 2]


def test_images_without_labels_are_scored(evaluate, fake_model, photo_set, usual, output, tmp_path, write_rows):
    rows = [Sample(sample.image, "", sample.question) for sample in photo_set.samples]
    unlabelled = write_rows(tmp_path / "unlabelled.json", rows)
    finished = evaluate(*usual, "--dataset_path", unlabelled)
    assert finished.status == 0, finished.err
    assert set(read_detector(output).frame["label"]) == {""}
    assert str(output) in finished.out


# ------------------------------------------------------------------------------------------------------ wrong arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["--limit", "0"],
        ["--limit", "-1"],
        ["--limit", "many"],
        ["--batch_size", "0"],
        ["--workers", "-1"],
        ["--dtype", "int8"],
        ["--device", "banana"],
        ["--precision", "fp8"],
        ["--precision", "fp8", "--dtype", "float32"],
        ["--precision", "fp8", "--adapter", "x"],
        ["--precision", "fp8", "--engine", "transformers"],
        ["--engine", "vllm"],
        ["--protocol", "mine"],
        ["--model", "x"],
        ["--sources"],
        ["x.csv"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(evaluate, fake_model, usual, output, arguments):
    finished = evaluate(*usual, *arguments)
    assert finished.status == 2, finished
    assert "Traceback" not in finished.err
    assert not output.exists()


def test_a_gpu_that_is_not_there(evaluate, fake_model, usual):
    finished = evaluate(*usual, "--device", "cuda:1")
    assert finished.status == 2
    assert "no usable CUDA GPU; --device cpu works" in finished.err


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_missing_annotation_file(evaluate, fake_model, usual, tmp_path):
    error = one_error(evaluate(*usual, "--dataset_path", tmp_path / "none.json"))
    assert "none.json: no such annotation file" in error


BAD_ANNOTATIONS = {
    "empty": ("", "no rows"),
    "no rows": ("[]", "no rows"),
    "broken": ('[{"messages": ', ""),
    "neither shape": ('[{"picture": "a.jpg"}]', "row 1.*keys.*picture"),
    "label C": (
        '[{"images": "a.jpg", "messages": [{"role": "user", "content": "Real?"},'
        ' {"role": "assistant", "content": "C"}]}]',
        "row 1: the label is 'C'; expected A",
    ),
}


@pytest.mark.parametrize("kind", BAD_ANNOTATIONS)
def test_bad_annotations(evaluate, fake_model, usual, tmp_path, output, kind):
    content, reason = BAD_ANNOTATIONS[kind]
    path = tmp_path / "bad.json"
    path.write_text(content)
    error = one_error(evaluate(*usual, "--dataset_path", path))
    assert error.startswith(f"error: {path}")
    assert re.search(reason, error), error
    assert fake_model.loads == 0
    assert not output.exists()


@pytest.fixture
def damaged(photo_set, tmp_path):
    """A copy of the photo set with a missing, an undecodable and a truncated image (second, fourth and seventh)."""
    root = shutil.copytree(photo_set.root, tmp_path / "damaged")
    (root / photo_set.samples[1].image).unlink()
    (root / photo_set.samples[3].image).write_bytes(b"not an image")
    path = root / photo_set.samples[6].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    return root


def test_images_that_fail_are_listed_and_the_others_scored(evaluate, fake_model, photo_set, usual, output, damaged):
    error = one_error(evaluate(*usual, "--image_root", damaged))
    assert "agent.errors.csv: 2 images without an answer" in error
    errors = pd.read_csv(output.with_name("agent.errors.csv"))
    assert list(errors.columns) == ["image", "error"]
    assert errors["image"].tolist() == [photo_set.samples[1].image, photo_set.samples[3].image]
    assert errors["error"][0] == "file is missing"
    assert errors["error"][1].startswith("cannot be decoded: ")
    scored = read_detector(output)
    assert len(scored.frame) == 10
    assert scored.num_errors == 2


def test_images_with_a_warning_are_scored_and_listed(evaluate, fake_model, photo_set, usual, output, damaged):
    deep = np.full((40, 40), 0x8000, np.uint16)
    Image.fromarray(deep).save(damaged / photo_set.samples[4].image)
    finished = evaluate(*usual, "--image_root", damaged)
    assert "2 images with a warning, such as a truncated file" in finished.out
    warnings = pd.read_csv(output.with_name("agent.warnings.csv"))
    assert warnings.values.tolist() == [
        [photo_set.samples[4].image, "has 16 bits a pixel; only the high byte counts"],
        [photo_set.samples[6].image, "file is truncated; decoded as far as it goes"],
    ]
    assert set(warnings["image"]) <= set(read_detector(output).frame["image"])
    assert json.loads(output.with_suffix(".json").read_text())["warnings"] == 2


def test_strict_images_makes_a_truncated_image_an_error(evaluate, fake_model, photo_set, usual, output, damaged):
    error = one_error(evaluate(*usual, "--image_root", damaged, "--strict_images"))
    assert ": 3 images without an answer" in error
    errors = pd.read_csv(output.with_name("agent.errors.csv"))
    assert errors["image"][2] == photo_set.samples[6].image
    assert errors["error"][2].startswith("cannot be decoded whole: ")
    assert not output.with_name("agent.warnings.csv").exists()


def test_an_image_root_without_images_is_refused_before_anything_is_loaded(
    evaluate, fake_model, photo_set, usual, output, tmp_path
):
    root = tmp_path / "empty"
    root.mkdir()
    error = one_error(evaluate(*usual, "--image_root", root))
    first = photo_set.samples[0].image
    assert f"error: {root}: none of 12 images is there, such as {root / first}. Correct --image_root" in error
    assert (fake_model.loads, output.exists()) == (0, False)


def test_a_run_in_which_every_image_fails(evaluate, fake_model, photo_set, usual, output, tmp_path):
    for sample in photo_set.samples:
        (tmp_path / "empty" / sample.image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "empty" / sample.image).touch()
    finished = evaluate(*usual, "--image_root", tmp_path / "empty")
    assert ": 12 images without an answer" in one_error(finished)
    assert output.read_text() == ",".join(COLUMNS) + "\n"
    assert "0 images in" in finished.out


def test_a_folder_of_images_that_is_not_there(evaluate, fake_model, usual, output, tmp_path):
    assert "nowhere: no such folder" in one_error(evaluate(*usual, "--image_root", tmp_path / "nowhere"))
    assert not output.exists()


def test_logits_that_are_not_finite_are_errors(evaluate, fake_model, photo_set, usual, output):
    totals = []

    def logits(total: int) -> tuple[float, float]:
        totals.append(total)
        return {2: (float("nan"), 0.0), 5: (0.0, float("inf"))}.get(len(totals), (1.0, 2.0))

    fake_model.logits = logits
    error = one_error(evaluate(*usual))
    assert ": 2 images without an answer" in error
    assert "for 2 of them the model's logits are NaN or infinite. Look at its weights, or --overwrite" in error
    assert "Mend the images" not in error
    errors = pd.read_csv(output.with_name("agent.errors.csv"))
    assert errors["image"].tolist() == [photo_set.samples[1].image, photo_set.samples[4].image]
    assert set(errors["error"]) == {"logits are not finite"}
    assert len(read_detector(output).frame) == 10


def test_impossible_proportions_are_one_images_error(evaluate, checkpoints, tmp_path, write_rows, output, draw):
    """Qwen2.5-VL refuses images longer than 200 times their width."""
    samples = [Sample("DFBench/Kolors/long.png", "B", "Real?"), Sample("DFBench/Kolors/usual.png", "B", "Real?")]
    for sample, size in zip(samples, [(2010, 10), (64, 48)], strict=True):
        (tmp_path / sample.image).parent.mkdir(parents=True, exist_ok=True)
        draw(seed=0, width=size[0], height=size[1]).save(tmp_path / sample.image)
    annotations = write_rows(tmp_path / "rows.json", samples)
    error = one_error(
        evaluate("--model_path", checkpoints["qwen2.5"], "--dataset_path", annotations, "--image_root", tmp_path,
                 "--output_csv", output, agent="qwen2.5")
    )  # fmt: skip
    assert ": 1 images without an answer" in error
    assert "2010x10 pixels" in output.with_name("agent.errors.csv").read_text()
    assert read_detector(output).frame["image"].tolist() == ["DFBench/Kolors/usual.png"]


@pytest.mark.parametrize("agent", ["qwen2.5", "internvl3"])
def test_an_image_with_a_broken_side_note_is_scored(evaluate, checkpoints, tmp_path, write_rows, output, draw, agent):
    """A PNG whose text chunk has a wrong checksum: its header cannot be read strictly, its pixels can."""
    note = PngInfo()
    note.add_text("Comment", "hello")
    path = tmp_path / "DFBench/Kolors/1.png"
    path.parent.mkdir(parents=True)
    draw(seed=0, width=64, height=48).save(path, pnginfo=note)
    data = bytearray(path.read_bytes())
    data[data.index(b"hello") + len(b"hello")] ^= 255
    path.write_bytes(data)
    annotations = write_rows(tmp_path / "rows.json", [Sample("DFBench/Kolors/1.png", "B", "Real?")])
    finished = evaluate(
        "--model_path", checkpoints[agent], "--dataset_path", annotations, "--image_root", tmp_path,
        "--output_csv", output, agent=agent,
    )  # fmt: skip
    assert finished.status == 0, finished.err + output.with_name("agent.errors.csv").read_text()
    assert len(read_detector(output).frame) == 1


# ------------------------------------------------------------------------------------------------------------- weights


def test_no_weights_at_all(evaluate, photo_set, output, tmp_path):
    paths = ["--dataset_path", photo_set.messages, "--output_csv", output, "--train_dir", tmp_path / "output_ckpt"]
    error = one_error(evaluate(*paths))
    assert re.search("output_ckpt: .*no merged model and no adapter.*[Tt]rain first", error)


def test_a_folder_of_another_family(evaluate, usual, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "model_type is 'bert'; expected qwen2_5_vl or internvl" in one_error(evaluate(*usual))


def test_weights_that_are_cut_off(evaluate, usual, checkpoints, tmp_path, output):
    folder = shutil.copytree(checkpoints["internvl3"], tmp_path / "cut")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"error: {path}: not a complete safetensors file (" in one_error(evaluate(*usual, "--model_path", folder))


def test_an_adapter_of_another_model(evaluate, usual, checkpoints, tmp_path, output):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "other"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.zeros(2, 96)}, adapter / "adapter_model.safetensors")
    error = one_error(evaluate(*usual, "--model_path", checkpoints["internvl3"], "--adapter", adapter))
    assert re.search(rf"error: {adapter}: .*(LoRA adapter of this model|match the model's layers)", error)


def test_an_adapter_that_is_none(evaluate, usual, checkpoints, tmp_path):
    error = one_error(evaluate(*usual, "--model_path", checkpoints["internvl3"], "--adapter", tmp_path))
    assert re.search(rf"error: {tmp_path}: .*no adapter_config.json.* a LoRA adapter", error)


# ------------------------------------------------------------------------------------------------- files on the disk


def test_an_output_folder_that_is_a_file(evaluate, fake_model, usual, tmp_path):
    (tmp_path / "file").touch()
    error = one_error(evaluate(*usual, "--output_csv", tmp_path / "file" / "agent.csv"))
    assert f"{tmp_path / 'file'}" in error
    assert fake_model.loads == 0


def test_an_output_csv_that_is_a_folder(evaluate, fake_model, usual, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    error = one_error(evaluate(*usual, "--output_csv", tmp_path / "folder.csv"))
    assert f"{tmp_path / 'folder.csv'}" in error
    assert fake_model.loads == 0


def test_a_full_disk_keeps_what_is_scored(evaluate, fake_model, usual, output):
    """A limit on the size of files stands for the end of the disk; when there is room, the same command goes on."""
    evaluate(*usual, "--batch_size", 3)
    expected = output.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(expected) - 60, hard))
    try:
        error = one_error(evaluate(*usual, "--batch_size", 3, "--overwrite"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.startswith(f"error: {output}")
    assert re.search("File too large.*room.* is kept|File too large.* is kept.*room", error)
    assert output.stat().st_size == len(expected) - 60
    fake_model.seen.clear()
    assert evaluate(*usual, "--batch_size", 3).status == 0
    assert fake_model.seen == [3]
    assert output.read_bytes() == expected


@pytest.mark.parametrize(("agent", "token"), [("qwen2.5", "<|image_pad|>"), ("internvl3", "<IMG_CONTEXT>")])
def test_a_question_with_an_image_token_of_its_own(
    evaluate, checkpoints, photo_set, output, tmp_path, write_rows, agent, token
):
    first, *others = photo_set.samples[:3]
    rows = write_rows(tmp_path / "rows.json", [Sample(first.image, first.label, f"<image>Real? {token}"), *others])
    usual = ("--model_path", checkpoints[agent], "--dataset_path", rows, "--image_root", photo_set.root)
    error = one_error(evaluate(*usual, "--output_csv", output, agent=agent))
    assert ": 1 images without an answer" in error
    assert "its question holds 1 image tokens of its own" in output.with_name("agent.errors.csv").read_text()
    assert len(read_detector(output).frame) == 2
