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
from dfbench.models.internvl_convert.shards import Checkpoint, plain_name

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


def updates_from_file(path: Path, checkpoint: Checkpoint, rank: int, alpha: int) -> dict[str, LowRank]:
    """The updates of a `lora_weights.pth`, by the plain name of the weight. Raises InputError."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        named = [(*plain_name(key), tensor) for key, tensor in tensors.items()]
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, AttributeError) as error:
        raise InputError(f"{path}: no readable lora_weights.pth ({shorten(str(error))}). Copy it again.") from error
    other = [name for name, letter, _ in named if not letter]
    if other or not named:
        raise InputError(f"{path}: {other[0] if other else 'nothing'} in it; expected LoRA tensors and no others.")
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, letter, tensor in named:
        pairs.setdefault(name, {})[letter] = tensor
        if letter == "A" and len(tensor) != rank:
            raise InputError(
                f"{path}: LoRA of {name} has rank {len(tensor)}; expected {rank}. "
                f"Give the --lora-rank and --lora-alpha of its training (upstream's alpha is twice the rank)."
            )
    return _updates(pairs, checkpoint, alpha / rank, path)


def updates_inside(checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path) -> dict[str, LowRank]:
    """The updates inside a folder that upstream's trainer saved; none for any other folder.

    config: the folder's own, which states the two ranks. Raises InputError.
    """
    for part, key in _RANK_KEYS.items():
        if config.get(key) and not any(name.startswith(part) for name in checkpoint.adapters):
            raise InputError(f"{folder}: {key} is {config[key]} in config.json, but there is no LoRA of {part}.")
    pairs = {name: {letter: s.read() for letter, s in pair.items()} for name, pair in checkpoint.adapters.items()}
    return _updates(pairs, checkpoint, 2.0, folder)


def _updates(
    pairs: Mapping[str, Mapping[str, Tensor]], checkpoint: Checkpoint, scaling: float, where: Path
) -> dict[str, LowRank]:
    updates = {}
    for name, pair in pairs.items():
        stored = checkpoint.weights.get(name)
        if stored is None or len(pair) < 2:
            reason = "the checkpoint has no such weight" if stored is None else f"only LoRA {''.join(pair)} is there"
            raise InputError(f"{where}: LoRA of {name}: {reason}. Use the file that was trained on this checkpoint.")
        found, shape = (pair["B"].shape[0], pair["A"].shape[-1]), tuple(stored.meta.shape)
        if found != shape:
            raise InputError(f"{where}: LoRA of {name} has shape {found}; expected {shape}, that of the weight.")
        updates[name] = LowRank(pair["A"], pair["B"], scaling)
    return updates
