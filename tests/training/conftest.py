"""What the tests of training share: its program in this process, with or without a stand-in for ms-swift."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import flag
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from dfbench import cli
from dfbench.training import train


@pytest.fixture
def swift(monkeypatch, no_gpu) -> list[list[str]]:
    """Stands for ms-swift: the command lines that would have been run, [command, *flags]. Merging leaves a config."""
    calls: list[list[str]] = []

    def run_swift(command: str, flags: list[str], advice: str = "") -> None:
        calls.append([command, *flags])
        if command == "export":
            output = Path(flag(flags, "output_dir"))
            output.mkdir()
            (output / "config.json").write_text("{}")

    for module in ("train", "merge"):
        monkeypatch.setattr(f"dfbench.training.{module}.run_swift", run_swift)
    return calls


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("NPROC_PER_NODE", "NNODES", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, list[str]]]:
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
    """Arguments of a training that can start."""
    return [
        "sft", "--model", checkpoints["internvl3"], "--train_annotations", photo_set.messages,
        "--image_root", photo_set.root, "--output_dir", tmp_path / "out",
    ]  # fmt: skip


@pytest.fixture
def copy_of(checkpoints, tmp_path) -> Callable[[str], Path]:
    """A function: agent -> a copy of its checkpoint that may be damaged."""
    return lambda agent: shutil.copytree(checkpoints[agent], tmp_path / agent)


@pytest.fixture(scope="session")
def make_adapter(checkpoints, tmp_path_factory) -> Callable[[Path], Path]:
    """A function: a folder -> the folder, made into an adapter of internvl3 that changes its query projections."""
    layers = r".*language_model.*q_proj"
    model = AutoModelForImageTextToText.from_pretrained(checkpoints["internvl3"])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    adapter = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(adapter)
    return lambda folder: shutil.copytree(adapter, folder)
