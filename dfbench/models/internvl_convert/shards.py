"""The safetensors files of a checkpoint: listing what they hold, and writing them in shards with their index.

Listing reads headers only. Names are freed of what PEFT put around them, so that a folder which upstream's trainer
saved (`language_model.base_model.model.output.weight`, `... .wo.base_layer.weight`) reads like a plain one.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfbench.errors import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_LORA_SUFFIXES = {".lora_A.default.weight": "A", ".lora_B.default.weight": "B"}


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def describe(self) -> Tensor:
        """A tensor of this shape and dtype that holds no data (device "meta")."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: weights by plain name, in the files' order; LoRA tensors by weight and letter (A or B)."""

    weights: dict[str, Stored]
    adapters: dict[str, dict[str, Stored]]

    def largest_file(self) -> int:
        """Bytes of the tensors in the largest file."""
        sizes: dict[Path, int] = {}
        for stored in self.weights.values():
            sizes[stored.file] = sizes.get(stored.file, 0) + stored.describe().nbytes
        return max(sizes.values())


def read_checkpoint(folder: Path) -> Checkpoint:
    """List all tensors of the folder's safetensors files.

    Raises InputError for a missing, cut off or foreign file, a missing or doubled tensor, and a dtype that is not plain
    floating point.
    """
    weights: dict[str, Stored] = {}
    adapters: dict[str, dict[str, Stored]] = {}
    for stored in _stored(folder):
        name, letter = plain_name(stored.key)
        places, place = (adapters.setdefault(name, {}), letter) if letter else (weights, name)
        if place in places:
            raise names_error(folder, unexpected=[stored.key])
        places[place] = stored
    wrapped = {name: stored.key for name, stored in weights.items() if stored.key.endswith(".base_layer.weight")}
    bare = [key for name, key in wrapped.items() if name not in adapters]
    if bare:
        raise names_error(folder, missing=[f"the LoRA of {key}" for key in bare])
    return Checkpoint(weights, adapters)


def plain_name(key: str) -> tuple[str, str]:
    """A tensor's name as it was before PEFT wrapped the model, and "A" or "B" if it is a LoRA tensor of that weight."""
    letter = next((letter for suffix, letter in _LORA_SUFFIXES.items() if key.endswith(suffix)), "")
    if letter:
        key = key.rsplit(".lora_", 1)[0] + ".weight"
    return key.replace(".base_model.model.", ".", 1).replace(".base_layer.", "."), letter


def open_shard(path: Path) -> Any:
    """`safe_open` for the CPU; a file that is missing or cut off is an InputError."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise InputError(
            path, found="no such file", expected="a shard that the index names", remedy="download it"
        ) from error
    except SafetensorError as error:
        raise InputError(
            path, found=f"a file that cannot be read ({error})", expected="safetensors", remedy="download it again"
        ) from error


def write_shards(folder: Path, shards: Iterable[dict[str, Tensor]], count: int) -> None:
    """Write `count` shards, and their index if there are several, under the names that transformers looks for.

    shards: contiguous tensors by name. They are taken one shard at a time and dropped once written.
    """
    weight_map, total_size = {}, 0
    names = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    coming = iter(shards)
    for name in names:
        # No variable here (nor `zip` or `enumerate`) may hold a shard, or two lie in memory while the next is made.
        sizes = _save(next(coming), folder / name)
        weight_map |= dict.fromkeys(sizes, name)
        total_size += sum(sizes.values())
    if count > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(tensors: dict[str, Tensor], path: Path) -> dict[str, int]:
    """Write one file; bytes by name."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(
            path,
            found=f"no way to write it ({error})",
            expected="room on the disk",
            remedy="free some, or write elsewhere",
        ) from error
    path.chmod(0o644)  # safetensors writes files that only their owner reads
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def names_error(where: Path, unexpected: Iterable[str] = (), missing: Iterable[str] = ()) -> InputError:
    """The error that lists tensors which should not be there, and such as are not there."""
    lists = {"unexpected tensors": sorted(unexpected), "missing tensors": sorted(missing)}
    return InputError(
        where,
        found=" and ".join(f"{title}: {', '.join(names)}" for title, names in lists.items() if names),
        expected="exactly the tensors of the model that config.json describes",
        remedy="use the files of one and the same checkpoint",
    )


def shape_error(where: Path, name: str, found: Iterable[int], expected: Iterable[int]) -> InputError:
    """The error for a tensor whose shape is not the one that the config or its counterpart asks for."""
    return InputError(
        where,
        found=f"{name} of shape {tuple(found)}",
        expected=f"shape {tuple(expected)}",
        remedy="use the files of one and the same checkpoint",
    )


def _stored(folder: Path) -> Iterator[Stored]:
    index = _read_index(folder)
    for file in sorted(set(index.values())) if index else [SINGLE]:
        with open_shard(folder / file) as shard:
            keys = set(shard.keys())
            promised = {key for key in index if index[key] == file} if index else keys
            if keys != promised:
                raise names_error(folder / file, unexpected=keys - promised, missing=promised - keys)
            for key in sorted(keys):
                info = shard.get_slice(key)
                if info.get_dtype() not in _FLOATS:
                    raise InputError(
                        folder / file,
                        found=f"{key} of dtype {info.get_dtype()}",
                        expected="bfloat16, float16 or float32",
                        remedy="use the checkpoint that is not quantised",
                    )
                yield Stored(folder / file, key, tuple(info.get_shape()), _FLOATS[info.get_dtype()])


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name; empty where the folder holds one file without an index."""
    path = folder / INDEX
    if path.is_file():
        try:
            weight_map = json.loads(path.read_bytes())["weight_map"]
            return {str(key): Path(file).name for key, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                path, found="no weight_map", expected="an index of safetensors files", remedy="download it again"
            ) from error
    if (folder / SINGLE).is_file():
        return {}
    raise InputError(
        folder, found=f"neither {INDEX} nor {SINGLE}", expected="safetensors weights", remedy="download them"
    )
