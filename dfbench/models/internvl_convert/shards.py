"""The safetensors files of a checkpoint: what they hold, by name, without reading any data; reading and writing them.

Names are given without what PEFT put into them, so that a folder saved by upstream's trainer
(`language_model.base_model.model.output.weight`, `... .wo.base_layer.weight`) reads like a plain one.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfbench.errors import InputError
from dfbench.models.internvl_convert.config import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_LORA = re.compile(r"\.lora_([AB])\.default\.weight$")


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file."""

    file: Path
    key: str
    meta: Tensor
    """Of its shape and dtype, without data (device "meta")."""

    def read(self) -> Tensor:
        with _open(self.file) as shard:
            return shard.get_tensor(self.key)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: weights by plain name, in the files' order; LoRA tensors by weight and letter (A or B)."""

    weights: dict[str, Stored]
    adapters: dict[str, dict[str, Stored]]

    def largest_file(self) -> int:
        """Bytes of the weights in the largest file."""
        sizes: Counter[Path] = Counter()
        for stored in self.weights.values():
            sizes[stored.file] += stored.meta.nbytes
        return max(sizes.values())


def read_checkpoint(folder: Path) -> Checkpoint:
    """List all tensors of the folder's safetensors files.

    Raises InputError for a file that is missing or cut off, and for a tensor that is quantised.
    """
    checkpoint = Checkpoint({}, {})
    for file in _files(folder):
        with _open(file) as shard:
            for key in sorted(shard.keys()):
                info = shard.get_slice(key)
                if info.get_dtype() not in _FLOATS:
                    raise InputError(f"{file}: {key} is quantised ({info.get_dtype()}). Use the original checkpoint.")
                meta = torch.empty(info.get_shape(), dtype=_FLOATS[info.get_dtype()], device="meta")
                name, letter = plain_name(key)
                group = checkpoint.adapters.setdefault(name, {}) if letter else checkpoint.weights
                group[letter or name] = Stored(file, key, meta)
    return checkpoint


def plain_name(key: str) -> tuple[str, str]:
    """A tensor's name as it was before PEFT wrapped the model, and "A" or "B" if it is a LoRA tensor of that weight."""
    match = _LORA.search(key)
    name = _LORA.sub(".weight", key).replace(".base_model.model.", ".", 1).replace(".base_layer.", ".")
    return name, match[1] if match else ""


def write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """Write contiguous tensors that share no memory."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{path}: writing failed ({error}). Free some disk space, or write elsewhere.") from error
    path.chmod(0o644)  # safetensors writes files that only their owner reads


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        return [folder / Path(name).name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise InputError(f"{folder}: neither {INDEX} nor {SINGLE} in it. Download the safetensors weights.")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, and the index names it. Download it.") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a complete safetensors file ({error}). Download it again.") from error
