"""What the model families share: the interface, and loading a checkpoint with or without a LoRA adapter."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from dfbench.errors import InputError, shorten

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Prepared:
    """One image's prompt, ready to be packed: token ids int64 (L,) and pixels uint8, in the family's own layout."""

    input_ids: Tensor
    pixels: Tensor
    grid: tuple[int, int] = (0, 0)


class Prompt(ABC):
    """The CPU side of a model family: question and image -> token ids and pixels. Used by scoring and by training
    alike.

    letters: token ids of A and B as they follow the prompt.
    """

    checkpoint: Path
    letters: tuple[int, int]

    @abstractmethod
    def prepare(self, question: str, rgb: Image.Image) -> Prepared:
        """The prompt of one RGB image up to where the answer begins."""

    @abstractmethod
    def collate(self, prepared: list[Prepared]) -> dict[str, Tensor]:
        """Pack several prompts into one batch of CPU tensors."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Protocol, prompt and image processing, for the metadata of a run."""


class Scorer(ABC):
    """The GPU side: a packed batch -> two logits for each image."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt
        self.device, self.dtype = model.device, model.dtype

    @abstractmethod
    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits of A and B: a collated batch on the model's device -> float32 (B, 2)."""


def read_config(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint folder's config.json. Raises InputError where it is none."""
    path = checkpoint / "config.json"
    if not path.exists():
        what = "no config.json in it" if checkpoint.is_dir() else "no such folder"
        raise InputError(
            checkpoint,
            found=what,
            expected="a checkpoint folder",
            remedy="download the weights or name the merged folder",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            path, found=f"broken JSON ({error})", expected="a config", remedy="download it again"
        ) from None
    if not isinstance(config, dict):
        raise InputError(path, found=shorten(config), expected="a JSON object", remedy="download it again")
    return config


def load_model(checkpoint: Path, *, device: str, dtype: str, adapter: Path | None = None) -> PreTrainedModel:
    """Load a checkpoint's weights straight to `device`; with `adapter`, LoRA layers stay unmerged beside them.

    Raises InputError where weights are missing, cut off or of other shapes, and where the adapter does not fit.
    """
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=DTYPES[dtype], device_map=device, attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _unusable(checkpoint, error, "a complete checkpoint", "download the weights again") from None
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[kind])
            raise InputError(
                checkpoint,
                found=f"{len(names)} {kind.replace('_', ' ')}, such as {names[0]}",
                expected="every weight of the model, once, in its shape",
                remedy="download or merge the weights again",
            )
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return model.eval().requires_grad_(False)


def _with_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with LoRA layers in place, its own class and names kept. Every adapter weight must find its layer."""
    if not (adapter / "adapter_config.json").exists():
        raise InputError(
            adapter,
            found="no adapter_config.json",
            expected="a LoRA adapter folder",
            remedy="name the checkpoint-N folder",
        )
    try:
        PeftConfig.from_pretrained(adapter)
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False)
        loaded = wrapped.load_adapter(adapter, "default", is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _unusable(
            adapter, error, "a LoRA adapter of this model", "name the adapter that was trained on it"
        ) from None
    strange = list(loaded.unexpected_keys) + [key for key in loaded.missing_keys if "lora_" in key]
    if strange:
        raise InputError(
            adapter,
            found=f"{len(strange)} weights that do not match the model's layers, such as {strange[0]}",
            expected="a LoRA adapter of this model",
            remedy="name the adapter that was trained on it",
        )
    return wrapped.get_base_model()


def _unusable(place: Path, error: Exception, expected: str, remedy: str) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(place, found=shorten(lines[0], 200), expected=expected, remedy=remedy)


def fingerprint(folder: Path) -> str:
    """A hash that tells one checkpoint or adapter from another in milliseconds: names, sizes, and 64 KiB samples of
    each file.

    Every shard is sampled at 16 places, which a merged, retrained or re-quantised one does not leave as they were.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*config.json")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for i in range(16):
                file.seek(size * i // 16)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]
