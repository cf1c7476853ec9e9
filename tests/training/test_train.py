"""Before ms-swift starts: every row checked, validation split off, flags for this machine."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import flag
from PIL import Image

from dfbench.data.annotations import Sample, read_annotations
from dfbench.data.images import ImageError
from dfbench.errors import InputError
from dfbench.models import qwen2_5_vl
from dfbench.models.registry import FAMILIES, Family
from dfbench.paths import REPOSITORY
from dfbench.training import train
from dfbench.training.checks import checked_samples
from dfbench.training.launch import ALWAYS
from dfbench.training.train import ON_CPU, TRAINING

ROOT = REPOSITORY


# ---------------------------------------------------------------------------------------------------------- the checks


def good_and_bad(photo_set) -> list[dict]:
    """Three good rows among seven bad ones."""
    rows = json.loads(photo_set.messages.read_text())[:3]
    question = rows[0]["messages"][0]

    def row(image: object, *turns: dict) -> dict:
        return {"messages": [question, *turns], "images": image}

    answer = {"role": "assistant", "content": "A"}
    return [
        rows[0],
        row("DFBench/Kolors/9.jpg", {"role": "assistant", "content": "C"}),
        {"picture": "x"},
        rows[1],
        row("DFBench/NOVA/10.jpg"),
        row("DFBench/NOVA/gone.jpg", answer),
        row(["a.jpg", "b.jpg"], answer),
        row(rows[0]["images"], {"role": "assistant", "content": "B"}),
        {"messages": [answer], "images": "DFBench/PixArt/11.webp"},
        rows[2],
    ]


def test_every_bad_row_is_listed_before_training(run, swift, usual, photo_set, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(good_and_bad(photo_set)))
    status, lines = run(*usual, "--train_annotations", path)
    assert status == 1
    assert swift == [], "ms-swift was started"
    listed, last = lines[:-1], lines[-1]
    assert len(listed) == 7
    for what in (
        "label is 'C'",
        "picture",
        "NOVA/10.jpg: no answer",
        "gone.jpg: file is missing",
        "a.jpg",
        "another label or question",
        "question",
    ):
        assert any(what in line for line in listed), (what, listed)
    assert last.startswith(f"error: {path}: 7 rows cannot be trained on")
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_of_many_bad_rows_the_first_are_listed(run, swift, usual, tmp_path, write_rows):
    samples = [Sample(f"gone/{i}.jpg", "A", "Real?") for i in range(500)]
    status, lines = run(*usual, "--train_annotations", write_rows(tmp_path / "rows.json", samples))
    assert status == 1
    assert len(lines) == 21
    assert "500 rows cannot be trained on (the first 20 are listed above)" in lines[-1]


def test_rows_are_named_by_file_and_row(run, swift, usual, photo_set, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(good_and_bad(photo_set)))
    lines = run(*usual, "--train_annotations", path)[1]
    # The 5th row of good_and_bad has no answer, the image of the 6th is missing.
    assert f"{path}, row 5: image DFBench/NOVA/10.jpg: no answer; training needs A or B" in lines
    gone = photo_set.root / "DFBench/NOVA/gone.jpg"
    assert f"{path}, row 6: image DFBench/NOVA/gone.jpg: file is missing ({gone})" in lines


def damage(root: Path, photo_set) -> None:
    """Of the copy at root, make the 4th image no image, empty the 5th, and cut off the 7th."""
    (root / photo_set.samples[3].image).write_bytes(b"not an image")
    (root / photo_set.samples[4].image).write_bytes(b"")
    path = root / photo_set.samples[6].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])


@pytest.mark.parametrize("flags", [(), ("--decode_images",)])
def test_images_that_cannot_be_decoded_stop_training(run, swift, usual, photo_set, tmp_path, flags):
    root = shutil.copytree(photo_set.root, tmp_path / "damaged")
    damage(root, photo_set)
    status, lines = run(*usual, "--image_root", root, *flags)
    assert (status, swift) == (1, [])
    rows, warnings = [[line for line in lines if line.startswith(start)] for start in (str(photo_set.messages), "w")]
    assert len(rows) == 2
    assert rows[0].startswith(f"{photo_set.messages}, row 4: image {photo_set.samples[3].image}: cannot be decoded")
    assert rows[1].startswith(f"{photo_set.messages}, row 5: image {photo_set.samples[4].image}: file is empty")
    assert ": 2 rows cannot be trained on" in lines[-1]
    assert ("--decode_images" in lines[-1]) == (not flags)
    # A truncated image can be trained on; its header does not tell.
    truncated = f"warning: {photo_set.messages}, row 7: image {photo_set.samples[6].image}: truncated"
    assert [line.startswith(truncated) for line in warnings] == ([True, False] if flags else [])


def test_truncated_images_are_counted_and_used(run, swift, usual, photo_set, tmp_path):
    root = shutil.copytree(photo_set.root, tmp_path / "damaged")
    for sample in photo_set.samples[6], photo_set.samples[8]:
        path = root / sample.image
        path.write_bytes(path.read_bytes()[:-200])
    status, lines = run(*usual, "--image_root", root, "--decode_images", "--val_fraction", 0)
    assert (status, len(swift)) == (0, 1)
    assert f"warning: {photo_set.messages}: 2 images are truncated; they are used as far as they go" in lines
    assert len(read_annotations(flag(swift[0], "dataset"))) == 12


def test_an_image_whose_header_alone_is_odd_is_used(photo_set, monkeypatch, capsys):
    open_image = Image.open

    def refuse_files(file, **options):
        if not isinstance(file, io.BytesIO):
            raise OSError("cannot make sense of this header")
        return open_image(file, **options)

    monkeypatch.setattr("PIL.Image.open", refuse_files)  # load_image opens the bytes
    assert len(checked_samples(photo_set.messages, photo_set.root)) == 12
    assert capsys.readouterr().err == ""


def test_an_image_that_claims_too_many_pixels_is_refused(photo_set, monkeypatch, capsys):
    monkeypatch.setattr("dfbench.data.images.MAX_PIXELS", 120 * 90 - 1)
    with pytest.raises(InputError, match=": 2 rows cannot"):
        checked_samples(photo_set.messages, photo_set.root)
    assert "row 1: image DFBench/Flick8k/1.jpg: claims 120x90 pixels" in capsys.readouterr().err


def test_an_image_that_is_too_long_for_qwen_is_refused(run, swift, usual, checkpoints, tmp_path, write_rows, draw):
    samples = []
    for width, height in ((402, 2), (2, 403), (201, 1), (300, 2), (1, 200)):
        draw(seed=0, width=width, height=height).save(tmp_path / f"{width}x{height}.png")
        samples.append(Sample(f"{width}x{height}.png", "A", "Real?"))
    usual += ["--train_annotations", write_rows(tmp_path / "rows.json", samples), "--image_root", tmp_path]
    prompt = qwen2_5_vl.QwenPrompt(checkpoints["qwen2.5"])
    refused = []
    for sample in samples:
        try:
            prompt.size(*map(int, sample.image.removesuffix(".png").split("x")))
        except ImageError:
            refused.append(sample.image)
    status, lines = run(*usual, "--model", checkpoints["qwen2.5"])
    assert (status, swift) == (1, [])
    assert [line.split(": image ")[1].split(":")[0] for line in lines[:-1]] == refused
    assert "402x2 pixels, more than 200 times as long as wide" in lines[0]
    assert run(*usual)[0] == 0, "InternVL takes images of all proportions"


def test_training_follows_from_the_record_of_a_family(run, swift, usual, monkeypatch, photo_set):
    """Of the photographs, two are 4 times as long as wide or as wide as long; the others less than 2 times."""
    prompt = FAMILIES["internvl"].prompt
    family = Family("new", ("internvl",), prompt=prompt, scorer="-", template="dfbench_new", max_aspect_ratio=3)
    monkeypatch.setitem(FAMILIES, "internvl", replace(FAMILIES["internvl"], model_types=()))
    monkeypatch.setitem(FAMILIES, "new", family)
    status, lines = run(*usual, "--model_type", "new")
    assert (status, len(lines), swift) == (1, 3, [])
    assert "DFBench/Kolors/9.jpg: 256x64 pixels, more than 3 times as long as wide" in lines[0]
    monkeypatch.setitem(FAMILIES, "new", replace(family, max_aspect_ratio=4))
    assert run(*usual, "--model_type", "new")[0] == 0
    assert flag(swift[0], "template") == "dfbench_new"


@pytest.mark.parametrize(("content", "reason"), [("", "no rows"), ("[]", "no rows"), ('[{"messages":', "broken JSON")])
def test_unusable_annotation_files(run, swift, usual, tmp_path, content, reason):
    path = tmp_path / "rows.json"
    path.write_text(content)
    status, lines = run(*usual, "--train_annotations", path)
    assert (status, len(lines), swift) == (1, 1, [])
    assert lines[0].startswith(f"error: {path}")
    assert reason in lines[0]


def test_a_base_model_that_is_not_there(run, swift, usual, tmp_path):
    status, lines = run(*usual, "--model", tmp_path / "none")
    assert (status, len(lines), swift) == (1, 1, [])
    assert "none: no such folder. Download the weights" in lines[0]


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(run, swift, usual, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "out" / "checkpoint-5")
    status, lines = run(*usual)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{tmp_path / 'out'} has checkpoints of an earlier run" in lines[0]
    assert run(*usual, "--resume_from_checkpoint", checkpoint)[0] == 0
    assert flag(swift[0], "resume_from_checkpoint") == str(checkpoint)


@pytest.mark.parametrize("name", ["checkpoint-5_merged", "checkpoint-5-backup", "checkpoint-best", "checkpoint-6"])
def test_what_the_limit_on_checkpoints_would_remove_is_told(run, swift, usual, tmp_path, name):
    """ms-swift counts each `checkpoint-*` folder as a checkpoint. checkpoint-6 is a merged model here."""
    checkpoint = make_checkpoint(tmp_path / "out" / "checkpoint-5")
    (tmp_path / "out" / name).mkdir()
    (tmp_path / "out" / name / "config.json").write_text("{}")
    for resume in ((), ("--resume_from_checkpoint", checkpoint)):
        status, lines = run(*usual, *resume)
        assert (status, len(lines), swift) == (1, 1, [])
        assert f"{tmp_path / 'out' / name} is no checkpoint, but training would remove it" in lines[0]
        assert f"a merged model into {tmp_path / 'out' / 'merged'}" in lines[0]
    (tmp_path / "out" / "merged").mkdir()
    (tmp_path / "out" / name).rename(tmp_path / "out" / "merged" / name)
    assert run(*usual, "--resume_from_checkpoint", checkpoint)[0] == 0


def test_a_file_among_the_checkpoints_is_none(run, swift, usual, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint-notes.txt").touch()
    assert run(*usual)[0] == 0


@pytest.mark.parametrize("name", ["checkpoint-6", "gone"])
def test_a_checkpoint_to_go_on_from_is_complete(run, swift, usual, tmp_path, name):
    (tmp_path / "out" / "checkpoint-6").mkdir(parents=True)
    status, lines = run(*usual, "--resume_from_checkpoint", tmp_path / "out" / name)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{tmp_path / 'out' / name}: no trainer_state.json" in lines[0]


def test_a_second_training_in_a_folder_is_refused(run, swift, usual, tmp_path, monkeypatch):
    (tmp_path / "other-name").symlink_to("out")
    seen = []

    def run_swift(*_: object) -> None:
        seen.append(run(*usual[:-1], tmp_path / "other-name"))
        seen.append(run(*usual[:-1], tmp_path / "elsewhere"))
        monkeypatch.setenv("NODE_RANK", "1")  # trains together with the first
        seen.append(run(*usual))
        monkeypatch.delenv("NODE_RANK")

    fake, first = train.run_swift, [run_swift]
    monkeypatch.setattr(train, "run_swift", lambda *flags: (first.pop() if first else fake)(*flags))
    assert run(*usual)[0] == 0
    assert [status for status, _ in seen] == [1, 0, 0]
    assert seen[0][1] == [
        f"error: {tmp_path / 'other-name'}: another training is at work in this folder. Wait for it, or set OUTPUT_DIR "
        f"to another."
    ]
    assert run(*usual)[0] == 0, "the lock outlives the run"


def test_an_interrupted_training_says_what_is_kept(run, swift, usual, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_swift", interrupt)
    assert run(*usual) == (130, ["interrupted; no checkpoint was written yet: the same command starts again"])
    out = tmp_path / "out"
    for step in (5, 10):
        make_checkpoint(out / f"checkpoint-{step}")
    (out / "checkpoint-15").mkdir()  # half written
    resume = out / "checkpoint-5"
    assert run(*usual, "--resume_from_checkpoint", resume) == (
        130,
        [
            f"interrupted; {out} keeps checkpoint-5, checkpoint-10. To go on, add --resume_from_checkpoint "
            f"{out / 'checkpoint-10'} to the command"
        ],
    )


# ---------------------------------------------------------------------------------------------- code in other's folders


def test_a_base_model_that_brings_code_is_refused(run, swift, usual, copy_of):
    folder = copy_of("internvl3")
    (folder / "processor_config.json").write_text('{"image_processor": {"auto\\u005fmap": {"AutoProcessor": "x.Y"}}}')
    status, lines = run(*usual, "--model", folder)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{folder / 'processor_config.json'}: auto_map makes training and merging run the code" in lines[0]


@pytest.mark.parametrize("option", ["--adapters", "--resume_from_checkpoint"])
def test_a_folder_to_start_from_that_brings_code_is_refused(run, swift, usual, tmp_path, make_adapter, option):
    adapter = make_adapter(tmp_path / "adapter")
    (adapter / "trainer_state.json").write_text("{}")
    assert run(*usual, option, adapter)[0] == 0
    assert flag(swift.pop(), option[2:]) == str(adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_map": {"AutoModel": "x.Y"}}')
    status, lines = run(*usual, option, adapter)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{adapter / 'adapter_config.json'}: auto_map" in lines[0]


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("config.json", '{"model_type": "internvl", "text_config": 7}', "its config, tokenizer or image processor"),
        ("tokenizer.json", "{}", "its config, tokenizer or image processor cannot be used"),
        ("config.json", "[]", "not a config, a JSON object"),
        ("config.json", '{"model_type": "llama"}', "safetensors"),
        ("model.safetensors", None, "safetensors"),
    ],
)
def test_a_damaged_base_model_is_told_in_one_line(run, swift, usual, copy_of, file, content, found):
    folder = copy_of("internvl3")
    if found == "safetensors":
        (folder / "model.safetensors").unlink()
    if content:
        (folder / file).write_text(content)
    status, lines = run(*usual, "--model", folder)
    assert (status, len(lines), swift) == (1, 1, [])
    assert str(folder) in lines[0]
    assert found in lines[0]


@pytest.mark.parametrize(("model", "model_type"), [("internvl3", "qwen2_5_vl"), ("qwen2.5", "internvl")])
def test_a_model_of_another_family_is_refused(run, swift, usual, checkpoints, model, model_type):
    status, lines = run(*usual, "--model", checkpoints[model], "--model_type", model_type)
    assert (status, len(lines), swift) == (1, 1, [])
    found = json.loads((checkpoints[model] / "config.json").read_text())["model_type"]
    assert f"{checkpoints[model] / 'config.json'}: model_type is '{found}'; expected {model_type}." in lines[0]


def test_an_original_internvl_checkpoint_is_not_converted_for_qwen(run, swift, usual, tmp_path):
    folder = tmp_path / "InternVL2_5-8B"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "internvl_chat"}')
    status, lines = run(*usual, "--model", folder, "--model_type", "qwen2_5_vl")
    assert (status, len(lines), swift) == (1, 1, [])
    assert "model_type is 'internvl_chat'; expected qwen2_5_vl" in lines[0]


@pytest.mark.parametrize(("model", "model_type"), [("internvl3", "internvl"), ("qwen2.5", "qwen2_5_vl")])
def test_the_model_type_reaches_ms_swift(run, swift, usual, checkpoints, model, model_type):
    assert run(*usual, "--model", checkpoints[model], "--model_type", model_type)[0] == 0
    assert flag(swift[0], "model_type") == model_type


def test_an_output_folder_that_cannot_be_is_told_before_rows_are_checked(run, swift, usual, tmp_path):
    (tmp_path / "file").touch()
    nowhere = ("--train_annotations", tmp_path / "gone.json")
    for folder in (tmp_path / "file", tmp_path / "file" / "out", "/proc/out"):
        status, lines = run(*usual, *nowhere, "--output_dir", folder)
        assert (status, len(lines), swift) == (1, 1, [])
        assert f"error: {folder}: nothing can be written there" in lines[0]
        assert "Set OUTPUT_DIR" in lines[0]


# --------------------------------------------------------------------------------------------------- validation data


def test_validation_rows_that_are_training_rows_are_refused(run, swift, usual, photo_set, tmp_path, write_rows):
    val = write_rows(tmp_path / "val.json", photo_set.samples[4:6])
    status, lines = run(*usual, "--val_annotations", val)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{val}: 2 images are training images too, such as DFBench/CSIQ/5.png" in lines[0]


def test_bad_validation_rows_are_refused_too(run, swift, usual, tmp_path, write_rows):
    val = write_rows(tmp_path / "val.json", [Sample("gone.jpg", "A", "Real?")])
    status, lines = run(*usual, "--val_annotations", val)
    assert (status, swift) == (1, [])
    assert lines[-1].startswith(f"error: {val}: 1 rows cannot be trained on")


def test_rows_are_written_for_ms_swift_with_absolute_paths(run, swift, usual, photo_set, tmp_path, write_rows):
    training = write_rows(tmp_path / "train.jsonl", photo_set.samples[:9])  # the shape that ms-swift does not load
    val = write_rows(tmp_path / "val.json", photo_set.samples[9:])
    assert run(*usual, "--train_annotations", training, "--val_annotations", val)[0] == 0
    words = swift[0]
    for name, samples in (("dataset", photo_set.samples[:9]), ("val_dataset", photo_set.samples[9:])):
        rows = [json.loads(line) for line in Path(flag(words, name)).read_text().splitlines()]
        assert [row["images"] for row in rows] == [[str(photo_set.path(sample))] for sample in samples]
        assert [row["messages"][1]["content"] for row in rows] == [sample.label for sample in samples]
        assert [row["messages"][0]["content"] for row in rows] == [sample.question for sample in samples]


def test_validation_is_split_off_the_training_rows(run, swift, usual, tmp_path, write_rows, draw):
    samples = []
    for source, label in (("Flick8k", "A"), ("Kolors", "B")):
        for i in range(20):
            path = tmp_path / "DFBench" / source / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(seed=0, width=8, height=8).save(path)
            samples.append(Sample(f"DFBench/{source}/{i}.png", label, "Real?"))
    rows = write_rows(tmp_path / "rows.json", samples)
    assert run(*usual, "--train_annotations", rows, "--image_root", tmp_path, "--val_fraction", 0.1)[0] == 0
    training, validation = (read_annotations(flag(swift[0], name)) for name in ("dataset", "val_dataset"))
    assert len(training) == 36
    assert {sample.label: 0 for sample in validation} == {"A": 0, "B": 0}
    assert not {s.image for s in training} & {s.image for s in validation}


def test_training_without_validation(run, swift, usual):
    assert run(*usual, "--val_fraction", 0)[0] == 0
    assert flag(swift[0], "val_dataset") is None
    assert flag(swift[0], "eval_strategy") == "no"


@pytest.mark.parametrize("fraction", ["-0.1", "1", "2", "half"])
def test_an_impossible_share_of_validation_rows(run, swift, usual, fraction):
    assert run(*usual, "--val_fraction", fraction)[0] == 2
    assert swift == []


# --------------------------------------------------------------------------------------------------------------- flags


def test_without_a_gpu_training_is_in_float32(run, swift, usual):
    assert run(*usual, "--torch_dtype", "bfloat16", "--attn_impl", "flash_attn")[0] == 0
    for name, value in zip(ON_CPU[::2], ON_CPU[1::2], strict=True):
        assert flag(swift[0], name.removeprefix("--")) == value
    assert flag(swift[0], "deepspeed") is None


def test_several_processes_on_a_cpu_talk_to_each_other(run, swift, usual, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    run(*usual)
    assert flag(swift[0], "ddp_backend") == "gloo"


@pytest.mark.parametrize(
    ("processes", "nodes", "deepspeed", "expected"),
    [("1", "1", "zero1", None), ("8", "1", "zero1", "zero1"), ("1", "2", "zero2", "zero2"), ("8", "1", "none", None)],
)
def test_several_gpus_share_the_optimizer(run, swift, usual, monkeypatch, processes, nodes, deepspeed, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("NPROC_PER_NODE", processes)
    monkeypatch.setenv("NNODES", nodes)
    run(*usual, "--deepspeed", deepspeed, "--torch_dtype", "bfloat16")
    assert flag(swift[0], "deepspeed") == expected
    assert flag(swift[0], "torch_dtype") == "bfloat16"
    assert flag(swift[0], "use_cpu") is None


@pytest.mark.parametrize("number", ["two", "0", "-1"])
def test_a_number_of_processes_that_is_none_is_told_before_rows_are_checked(
    run, swift, usual, monkeypatch, tmp_path, number
):
    monkeypatch.setenv("NPROC_PER_NODE", number)
    status, lines = run(*usual, "--train_annotations", tmp_path / "gone.json")
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"NPROC_PER_NODE is '{number}'. Set it to a number" in lines[0]


def test_what_training_always_asks_of_ms_swift_can_be_overridden(run, swift, usual):
    assert run(*usual, "--strict", "false")[0] == 0
    always = ALWAYS + TRAINING
    for name, value in zip(always[::2], always[1::2], strict=True):
        assert flag(swift[0], name.removeprefix("--")) == ("false" if name == "--strict" else value)
    assert flag(swift[0], "template") == "dfbench_internvl"


def test_further_flags_reach_ms_swift_in_order(run, swift, usual):
    run(*usual, "--max_steps", "100", "--learning-rate", "1e-3", "--max_steps", "2")
    assert flag(swift[0], "max_steps") == "2"
    assert flag(swift[0], "learning_rate") == "1e-3"
    assert swift[0][0] == "sft"


def test_wrong_arguments(run, swift):
    assert run()[0] == 2
    assert run("evaluate")[0] == 2
    assert run("sft")[0] == 2
    assert run("export")[0] == 2
    assert swift == []


def test_help_is_no_error(run, swift, capsys):
    assert run("--help")[0] == 0
    assert run("sft", "--help")[0] == 0
    assert run("export", "--help")[0] == 0
