"""LoRA weights as upstream's InternVL trainer writes them: in `lora_weights.pth`, or inside the folder that it saves.

They sit on the original modules, the fused `wqkv` and `qkv` among them, so they are merged before those are split. Rank
and alpha are not in the file; the trainer's alpha is twice the rank (`wrap_llm_lora(r, lora_alpha=2 * r)`).
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfbench.errors import InputError, shorten
from dfbench.models.internvl_convert.shards import Checkpoint, names_error, open_shard, plain_name, shape_error

Adapters = Mapping[str, Mapping[str, Tensor]]
"""Plain weight name -> {"A": (rank, in), "B": (out, rank)}."""

_RANK_KEYS = {"vision_model": "use_backbone_lora", "language_model": "use_llm_lora"}
"""Part of the model -> where a saved folder's config states the rank of its LoRA."""


@dataclass(frozen=True)
class LowRank:
    """The LoRA update of one weight, scaling * b @ a. a: (rank, in), b: (out, rank)."""

    a: Tensor
    b: Tensor
    scaling: float

    def merged(self, weight: Tensor) -> Tensor:
        """`weight` (out, in) with the update added, in float32.

        It stays in float32, in the file too: rounded to bfloat16 it moves the logits of a tiny model by 0.02, where the
        exact sum stays within 1e-5 of upstream's. A model that is loaded in bfloat16 rounds then.
        """
        update = self.b.float() @ self.a.float()
        return update.mul_(self.scaling).add_(weight)


def read_lora(path: Path) -> Adapters:
    """The LoRA tensors of a `lora_weights.pth`. Raises InputError for anything else."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        named = [(key, *plain_name(key), tensor) for key, tensor in tensors.items()]
    except FileNotFoundError as error:
        raise InputError(path, found="no such file", expected="LoRA weights", remedy="check the path") from error
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, AttributeError) as error:
        raise InputError(
            path,
            found=f"a file that cannot be read ({shorten(str(error))})",
            expected="lora_weights.pth as upstream's training writes it",
            remedy="copy it again",
        ) from error
    if not named:
        raise names_error(path, missing=["all LoRA tensors"])
    adapters: dict[str, dict[str, Tensor]] = {}
    for key, name, letter, tensor in named:
        if not letter:
            raise names_error(path, unexpected=[key])
        adapters.setdefault(name, {})[letter] = tensor
    return adapters


def _load(checkpoint: Checkpoint) -> Adapters:
    adapters: dict[str, dict[str, Tensor]] = {}
    for name, pair in checkpoint.adapters.items():
        for letter, stored in pair.items():
            with open_shard(stored.file) as shard:
                adapters.setdefault(name, {})[letter] = shard.get_tensor(stored.key)
    return adapters


def updates_from_file(path: Path, checkpoint: Checkpoint, rank: int, alpha: int) -> dict[str, LowRank]:
    """The updates of a `lora_weights.pth`, by the plain name of the weight. Raises InputError."""
    return _updates(read_lora(path), checkpoint, dict.fromkeys(_RANK_KEYS, (rank, alpha)), path)


def updates_inside(checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path) -> dict[str, LowRank]:
    """The updates inside a folder that upstream's trainer saved; none for any other folder.

    config: the folder's own, which states the two ranks. Raises InputError.
    """
    ranks = {part: config.get(key) or 0 for part, key in _RANK_KEYS.items()}
    wrapped = {name.partition(".")[0] for name in checkpoint.adapters}
    absent = [part for part, rank in ranks.items() if rank and part not in wrapped]
    if absent:
        raise names_error(folder, missing=[f"the LoRA of {part}, which config.json promises" for part in absent])
    stated = {part: (rank, 2 * rank) for part, rank in ranks.items()}
    return _updates(_load(checkpoint), checkpoint, stated, folder)


def _updates(
    adapters: Adapters, checkpoint: Checkpoint, trained_with: Mapping[str, tuple[int, int]], where: Path
) -> dict[str, LowRank]:
    """Hold LoRA tensors to the weights that they belong to, and to the (rank, alpha) of their part of the model."""
    unexpected = [f"the LoRA of {name}" for name in adapters if name not in checkpoint.weights]
    missing = [f"LoRA {letter} of {name}" for name, pair in adapters.items() for letter in "AB" if letter not in pair]
    if unexpected or missing:
        raise names_error(where, unexpected, missing)
    updates = {}
    for name, pair in adapters.items():
        (rank, alpha), a, b = trained_with.get(name.partition(".")[0], (0, 0)), pair["A"], pair["B"]
        if (a.shape[0], b.shape[-1]) != (rank, rank):
            raise InputError(
                where,
                found=f"LoRA of rank {a.shape[0]} ({name})",
                expected=f"rank {rank}",
                remedy="give the --lora-rank and --lora-alpha of its training (upstream's alpha is twice the rank)",
            )
        if (b.shape[0], a.shape[-1]) != checkpoint.weights[name].shape:
            raise shape_error(where, f"the LoRA of {name}", (b.shape[0], a.shape[-1]), checkpoint.weights[name].shape)
        updates[name] = LowRank(a, b, alpha / rank)
    return updates
