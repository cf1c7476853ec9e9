"""Several processes of one run, as `torchrun` starts them: who am I, and what do the others have?"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_PATIENCE = timedelta(days=30)
"""How long a process waits for the slowest one. Where one dies, torchrun ends the others."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """What torchrun says in RANK and WORLD_SIZE; one process where it did not start us."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        # gloo: only small Python objects are exchanged, and it needs no GPU.
        dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), world)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the ranks, when all have come here."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values
