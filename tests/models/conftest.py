"""Shared by the tests of models: prepared images, copies of checkpoints that may be damaged, adapters."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from dfbench.data.images import load_image
from dfbench.models.base import ModelInputs, Prompt, Scorer


@pytest.fixture(scope="session")
def prepare_all(photo_set) -> Callable[[Prompt], list[ModelInputs]]:
    """A function: prompt -> the prepared prompts of all images of the photo set, of many lengths."""

    def prepare(prompt: Prompt) -> list[ModelInputs]:
        return [prompt.prepare(s.question, load_image(photo_set.path(s)).rgb) for s in photo_set.samples]

    return prepare


@pytest.fixture(scope="session")
def logits() -> Callable[[Scorer, list[ModelInputs]], Tensor]:
    """A function: (scorer, prepared prompts) -> logits of one batch of them all."""
    return lambda scorer, inputs: scorer.logits(scorer.prompt.collate(inputs))


@pytest.fixture
def copy_of(checkpoints, tmp_path) -> Callable[..., Path]:
    """A function: agent -> a copy of its checkpoint that may be damaged, with or without weights."""

    def copy(agent: str, *, weights: bool = True) -> Path:
        left_out = shutil.ignore_patterns(*([] if weights else ["*.safetensors"]))
        return shutil.copytree(checkpoints[agent], tmp_path / agent, ignore=left_out)

    return copy


@pytest.fixture(scope="session")
def change_weights() -> Callable[[Path, Callable[[dict[str, Tensor]], dict[str, Tensor]]], None]:
    """A function: (checkpoint, weights -> other weights) that rewrites its weights."""

    def change(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return change


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """A function: (checkpoint, folder) -> a LoRA adapter as peft writes it, with weights that change something."""

    def make(checkpoint: Path, folder: Path, *, rank: int = 2, scale: float = 0.3, **config: object) -> Path:
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        config = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": rank, "lora_alpha": 4, **config}
        wrapped = get_peft_model(model, LoraConfig(**config))
        rng = torch.Generator().manual_seed(0)
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn(weight.shape, generator=rng) * scale
        wrapped.save_pretrained(folder)
        return folder

    return make
