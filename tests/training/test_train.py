"""Before ms-swift starts: every row checked, validation split off, flags for this machine."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import flag
from PIL import Image

from dfbench import cli
from dfbench.data.annotations import Sample, read_annotations
from dfbench.data.images import ImageError
from dfbench.errors import InputError
from dfbench.models import qwen2_5_vl
from dfbench.models.registry import FAMILIES, Family
from dfbench.paths import REPOSITORY
from dfbench.training import train
from dfbench.training.checks import checked_samples
from dfbench.training.train import ALWAYS, ON_CPU

ROOT = REPOSITORY


@pytest.fixture
def swift(monkeypatch) -> list[list[str]]:
    """Stands for ms-swift: the command lines that would have been run, [command, *flags]."""
    calls: list[list[str]] = []
    monkeypatch.setattr("dfbench.training.train._swift", lambda command, flags: calls.append([command, *flags]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("NPROC_PER_NODE", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def run(monkeypatch, capsys):
    """A function: arguments of `python -m dfbench.training.train` -> exit status, lines on stderr."""

    def call(*arguments: object) -> tuple[int, list[str]]:
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, arguments)])
        try:
            status = cli.run(train.main)
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err.splitlines()

    return call


@pytest.fixture
def usual(checkpoints, photo_set, tmp_path) -> list[object]:
    return [
        "sft", "--model", checkpoints["internvl3"], "--train_annotations", photo_set.messages,
        "--image_root", photo_set.root, "--output_dir", tmp_path / "out",
    ]  # fmt: skip


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
    family = Family("new", ("internvl",), prompt="-", scorer="-", template="dfbench_new", max_aspect_ratio=3)
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


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(run, swift, usual, tmp_path):
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    status, lines = run(*usual)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{tmp_path / 'out'} has checkpoints of an earlier run" in lines[0]
    checkpoint = tmp_path / "out" / "checkpoint-5"
    assert run(*usual, "--resume_from_checkpoint", checkpoint)[0] == 0
    assert flag(swift[0], "resume_from_checkpoint") == str(checkpoint)


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
    for name, value in zip(ALWAYS[::2], ALWAYS[1::2], strict=True):
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


def test_when_ms_swift_fails_so_does_training(run, monkeypatch, usual):
    commands = []

    def fail(words, env):
        commands.append((words, env))
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dfbench.training.train.subprocess.run", fail)
    status, lines = run(*usual)
    assert status == 1
    assert lines[-1].startswith("error: swift sft ended with exit status 3;")
    words, env = commands[0]
    assert words[:2] == [sys.executable, "-m"]
    assert env["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("command", ["sft", "export"])
def test_arguments_that_ms_swift_refuses_are_wrong_arguments(run, monkeypatch, usual, trained, command):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "dfbench.training.train.subprocess.run", lambda words, env: subprocess.CompletedProcess(words, 2)
    )
    status, lines = run(*usual) if command == "sft" else run("export", "--trained", trained)
    assert status == 2
    assert lines[-1] == f"error: swift {command}: wrong arguments, as its last line above says"


@pytest.mark.parametrize(
    ("flags", "status", "last"),
    [
        (("--bogus_flag", "2", "--other=3"), 2, "error: swift sft: unknown arguments --bogus_flag --other"),
        (
            ("--max-steps", "2", "--no_packing", "--packing=true"),
            1,
            "error: swift sft ended with exit status 1;",
        ),
    ],
)
def test_flags_that_ms_swift_does_not_have_are_wrong_arguments(run, monkeypatch, usual, flags, status, last):
    ours = [word.removeprefix("--") for word in ALWAYS + ON_CPU if word.startswith("--")]
    ours += ["template", "model", "output_dir", "dataset", "val_dataset"]
    arguments = make_dataclass("Arguments", [*ours, "max_steps", "packing"])
    stub = SimpleNamespace(SftArguments=arguments, ExportArguments=arguments)
    monkeypatch.setitem(sys.modules, "swift.arguments", stub)
    monkeypatch.setitem(sys.modules, "swift", SimpleNamespace(arguments=stub))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "dfbench.training.train.subprocess.run", lambda words, env: subprocess.CompletedProcess(words, 1)
    )
    ended, lines = run(*usual, *flags)
    assert ended == status
    assert lines[-1].startswith(last)


# --------------------------------------------------------------------------------------------------------------- merge


@pytest.fixture
def trained(tmp_path) -> Path:
    folder = tmp_path / "trained"
    for number in (1, 2):
        adapter = folder / f"checkpoint-{number}"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/base"}')
        (adapter / "adapter_model.safetensors").touch()
        os.utime(adapter, (1_700_000_000 + number,) * 2)
    return folder


def test_merging_takes_the_newest_adapter(run, swift, trained):
    assert run("export", "--trained", trained)[0] == 0
    words = swift[0]
    assert words[0] == "export"
    assert flag(words, "adapters") == str(trained / "checkpoint-2")
    assert flag(words, "output_dir") == str(trained / "checkpoint-2_merged")
    assert flag(words, "merge_lora") == "true"
    assert flag(words, "torch_dtype") == "float32"


def test_merging_takes_what_is_named(run, swift, trained, tmp_path):
    named = ("--adapters", trained / "checkpoint-1", "--output_dir", tmp_path / "merged")
    assert run("export", "--trained", trained, *named, "--max_shard_size", "5GB")[0] == 0
    assert flag(swift[0], "adapters") == str(trained / "checkpoint-1")
    assert flag(swift[0], "output_dir") == str(tmp_path / "merged")
    assert flag(swift[0], "max_shard_size") == "5GB"


def test_a_merged_model_is_not_overwritten(run, swift, trained):
    (trained / "checkpoint-2_merged").mkdir()
    assert run("export", "--trained", trained)[0] == 0
    (trained / "checkpoint-2_merged" / "config.json").touch()
    status, lines = run("export", "--trained", trained)
    assert (status, len(lines), len(swift)) == (1, 1, 1)
    assert "checkpoint-2_merged has files in it already" in lines[0]


def test_merging_before_training(run, swift, tmp_path):
    status, lines = run("export", "--trained", tmp_path)
    assert (status, len(lines), swift) == (1, 1, [])
    assert lines[0].startswith(f"error: {tmp_path}: ")
    assert "no merged model and no adapter" in lines[0]


def test_merging_a_folder_that_holds_no_adapter(run, swift, tmp_path):
    status, lines = run("export", "--trained", tmp_path, "--adapters", tmp_path)
    assert (status, len(lines), swift) == (1, 1, [])
    assert "no adapter_config.json" in lines[0]
