"""The interface of every model family: a prompt (question and image -> inputs, on the CPU) and a scorer (inputs -> two
logits, on the GPU).
"""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dfbench.data.images import ImageError
from dfbench.data.sources import LABELS
from dfbench.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dfbench.models.packed.packing import PackShape

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Engine = Literal["packed", "transformers"]
"""What runs the model: our packed layers, or the module's own forward pass (`dfbench.models.hf`)."""


@contextmanager
def blame(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what other libraries raise over a folder's files into an InputError that names it: for a damaged one
    transformers, peft and jinja raise errors of any type. Memory that runs out is not the folder's fault.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{folder}: {what} ({first_line(error)}). {remedy}") from error


@dataclass
class ModelInputs:
    """One image's prompt: token ids int64 (L,) and pixels uint8, in the family's own layout.

    grid: patches of the image, (rows, columns), where the family needs them.
    """

    input_ids: Tensor
    pixels: Tensor
    grid: tuple[int, int] = (0, 0)


class SequenceSize(NamedTuple):
    """What one prompt takes of a batch: tokens (shared prefix left out), tiles or patches, attention windows."""

    tokens: int
    vision: int
    windows: int = 0


class Prompt(ABC):
    """The CPU side of a model family: question and image -> token ids and pixels. Used by scoring and by training
    alike; small and picklable, so that worker processes can hold it.

    family: the name of its record in `dfbench.models.registry`.
    answer_tokens: token ids of A and B as they follow the prompt.
    engine: which scorer its batches are for (see `collate`).
    prefix: token ids that every prompt of the run begins with (see `share_prefix`).
    depends_on_size: whether `sequence_size` depends on the image at all.
    """

    family: str
    checkpoint: Path
    image_token_id: int
    answer_tokens: tuple[int, int]
    engine: Engine = "packed"
    prefix: list[int]
    depends_on_size: bool

    @abstractmethod
    def text(self, question: str, image_size: int) -> str:
        """The prompt as text, up to where the answer begins, its image written out as `image_size` tiles or tokens."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a whole prompt's text."""

    @abstractmethod
    def prepare(self, question: str, rgb: Image.Image) -> ModelInputs:
        """The prompt of one RGB image up to where the answer begins. Raises ImageError for impossible proportions."""

    @abstractmethod
    def pixel_values(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Pixels of `ModelInputs` (uint8) as the normalised values that the model takes, on the same device."""

    @abstractmethod
    def sequence_size(self, question: str, width: int, height: int) -> SequenceSize:
        """What `prepare` would give for an image of this size, without the image."""

    @abstractmethod
    def pack(self, inputs: list[ModelInputs], shape: "PackShape | None" = None) -> dict[str, Any]:
        """Prompts one after the other in one sequence, on the CPU, padded to `shape` where there is one."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Protocol, prompt and image processing, for the metadata of a run."""

    def input_ids(self, question: str, image_size: int) -> list[int]:
        """Token ids of a prompt whose image takes `image_size` tiles or tokens."""
        return list(_cached_ids(self, question, image_size))

    def collate(self, inputs: list[ModelInputs], shape: "PackShape | None" = None) -> dict[str, Any]:
        """The prompts as one batch of the scorer that `engine` names, on the CPU; each value has `.to` and
        `.pin_memory`. shape: of a packed batch, see `pack`.
        """
        return self.pad(inputs) if self.engine == "transformers" else self.pack(inputs, shape)

    def pad(self, inputs: list[ModelInputs]) -> dict[str, Tensor]:
        """Prompts as rows of one length, padded on the left, so that all of them end in the last column.

        `pixels`, and keyword arguments of transformers' forward pass: input_ids and attention_mask int64 (B, L), and
        either image_grid_thw (B, 3) and mm_token_type_ids (B, L), of which the model makes positions, or position_ids
        (B, L).
        """
        length = max(len(item.input_ids) for item in inputs)
        missing = torch.tensor([length - len(item.input_ids) for item in inputs])
        # A letter stands for nothing: an image token would be taken for one.
        ids = torch.stack(
            [F.pad(item.input_ids, (length - len(item.input_ids), 0), value=self.answer_tokens[0]) for item in inputs]
        )
        batch = {
            "input_ids": ids,
            "attention_mask": (torch.arange(length) >= missing[:, None]).long(),
            "pixels": torch.cat([item.pixels for item in inputs]),
        }
        if inputs[0].grid == (0, 0):
            return batch | {"position_ids": (torch.arange(length) - missing[:, None]).clamp(min=0)}
        grids = torch.tensor([[1, *item.grid] for item in inputs])
        return batch | {"image_grid_thw": grids, "mm_token_type_ids": (ids == self.image_token_id).long()}

    def for_engine(self, engine: Engine) -> "Prompt":
        """This prompt, or a copy of it, whose batches are for another engine."""
        if engine == self.engine:
            return self
        other = copy.copy(self)
        other.engine, other.prefix = engine, []
        other.share_prefix(["<image>"])
        return other

    def share_prefix(self, questions: Iterable[str]) -> None:
        """Set `prefix` to what the prompts of these questions have in common before the image; padded rows share
        nothing.
        """
        if self.engine == "transformers":
            return
        openings = {question.partition("<image>")[0] if "<image>" in question else "" for question in questions}
        prompts = [self.encode(self.text(opening + "<image>?", 1)) for opening in openings]
        self.prefix = os.path.commonprefix([ids[: ids.index(self.image_token_id)] for ids in prompts])

    def size_of_inputs(self, inputs: ModelInputs) -> SequenceSize:
        """The size of a prepared prompt; its windows are not counted."""
        return SequenceSize(len(inputs.input_ids) - len(self.prefix), len(inputs.pixels))

    def check_image_tokens(self, ids: Sequence[int], num_tokens: int) -> None:
        """Raise ImageError where a question holds image tokens of its own: no pixels would belong to them."""
        found = ids.count(self.image_token_id)
        if found != num_tokens:
            raise ImageError(f"its question holds {found - num_tokens} image tokens of its own")


@lru_cache(maxsize=4096)
def _cached_ids(prompt: Prompt, question: str, image_size: int) -> tuple[int, ...]:
    return tuple(prompt.encode(prompt.text(question, image_size)))


def answer_token_ids(encode: Callable[[str], Sequence[int]], prompt: str, where: object) -> tuple[int, int]:
    """Token ids of A and B as they follow `prompt` under the tokenizer at hand.

    encode: text -> token ids, special tokens in the text understood, none added.
    Raises InputError (its place being `where`) where a letter is not one token or merges with the prompt's last one.
    """
    before = list(encode(prompt))
    found = []
    for letter in LABELS:
        after = list(encode(prompt + letter))
        if len(after) != len(before) + 1 or after[:-1] != before:
            raise InputError(
                f"{where}: the answer {letter} is {len(after) - len(before)} tokens after the prompt instead of one of "
                f"its own. Use the tokenizer that belongs to the model."
            )
        found.append(after[-1])
    return found[0], found[1]


def normalize_pixels(table: Tensor, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise by a table, float32 (3, 256): pixels uint8 (n, 3, rows, columns) -> values of the same shape.

    A table gives the processor's own float32 values whatever computes it, and is rounded to `dtype` once.
    """
    channel = torch.arange(3, device=pixels.device)[None, :, None, None]
    return table.to(pixels.device, dtype, non_blocking=True)[channel, pixels.long()]


class Scorer(ABC):
    """The GPU side: a model and the prompt whose batches it takes."""

    def __init__(self, model: "PreTrainedModel", prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt
        self.device, self.dtype = model.device, model.dtype

    @abstractmethod
    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Logits of A and B: a batch of `prompt.collate`, on the model's device -> float32 (B, 2)."""
