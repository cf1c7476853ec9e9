"""What the model families share: the interface, and loading a checkpoint with or without a LoRA adapter."""

import hashlib
import logging
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dfbench.data.images import ImageError
from dfbench.errors import InputError, shorten
from dfbench.models.checkpoints import read_adapter_config
from dfbench.models.packed.fp8 import quantize
from dfbench.models.packed.layers import fuse_decoder_layer, fuse_vision_block
from dfbench.models.packed.packing import (
    PackShape,
    Prefix,
    decode_last,
    decode_prefix,
    decoder_layer,
    two_letter_logits,
)

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class ModelInputs:
    """One image's prompt, ready to be packed: token ids int64 (L,) and pixels uint8, in the family's own layout.

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
    alike.

    family: the config's `model_type`.
    answer_tokens: token ids of A and B as they follow the prompt.
    prefix: token ids that every prompt of the run begins with (see `share_prefix`).
    depends_on_size: whether `sequence_size` depends on the image at all.
    """

    family: str
    checkpoint: Path
    image_token_id: int
    answer_tokens: tuple[int, int]
    engine: str = "packed"
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
        """ModelInputs pixels (uint8) as the normalised values that the model takes, on the same device."""

    @abstractmethod
    def sequence_size(self, question: str, width: int, height: int) -> SequenceSize:
        """What `prepare` would give for an image of this size, without the image."""

    @abstractmethod
    def collate(self, prepared: list[ModelInputs], shape: PackShape | None = None) -> dict[str, Any]:
        """Pack prompts into one batch on the CPU, filled up to `shape`; each value has `.to` and `.pin_memory`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Protocol, prompt and image processing, for the metadata of a run."""

    def share_prefix(self, questions: Iterable[str]) -> None:
        """Set `prefix` to what the prompts of these questions have in common before the image."""
        openings = {question.partition("<image>")[0] if "<image>" in question else "" for question in questions}
        prompts = [self.encode(self.text(opening + "<image>?", 1)) for opening in openings]
        self.prefix = os.path.commonprefix([ids[: ids.index(self.image_token_id)] for ids in prompts])

    def size_of_inputs(self, prepared: ModelInputs) -> SequenceSize:
        """The cost of a prepared prompt; its windows are not counted."""
        return SequenceSize(len(prepared.input_ids) - len(self.prefix), len(prepared.pixels))

    def check_image_tokens(self, ids: Sequence[int], num_tokens: int) -> None:
        """Raise ImageError where a question holds image tokens of its own: no pixels would belong to them."""
        found = ids.count(self.image_token_id)
        if found != num_tokens:
            raise ImageError(f"its question holds {found - num_tokens} image tokens of its own")

    def own_ids(self, prepared: ModelInputs) -> Tensor:
        """A prompt's token ids after the shared prefix."""
        length = len(self.prefix)
        assert prepared.input_ids[:length].tolist() == self.prefix, "share_prefix has not seen this question"
        return prepared.input_ids[length:]


def normalize_pixels(table: Tensor, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise by a table, float32 (3, 256): pixels uint8 (n, 3, rows, columns) -> values of the same shape.

    A table gives the processor's own float32 values whatever computes it, and is rounded to `dtype` once.
    """
    channel = torch.arange(3, device=pixels.device)[None, :, None, None]
    return table.to(pixels.device, dtype, non_blocking=True)[channel, pixels.long()]


class Scorer(ABC):
    """The GPU side: a packed batch -> two logits for each image.

    compiled: compile the layers; every batch must then be filled up to one PackShape.
    """

    def __init__(self, model: PreTrainedModel, prompt: Prompt, *, compiled: bool = False) -> None:
        self.model, self.prompt = model, prompt
        self.device, self.dtype = model.device, model.dtype
        self.language = model.model.language_model
        for layer in self.language.layers:
            fuse_decoder_layer(layer)
        for block in self.vision_blocks:
            fuse_vision_block(block)
        self._run_layer = self.compile(decoder_layer, compiled)

    def quantize(self) -> None:
        """Use 8-bit products (`dfbench.models.packed.fp8`) in the language model and the vision MLPs, in place."""
        quantize(self.language.layers)
        quantize(block.mlp for block in self.vision_blocks)
        self.__dict__.pop("prefix", None)

    @property
    @abstractmethod
    def vision_blocks(self) -> nn.ModuleList:
        """The layers of the vision tower."""

    @staticmethod
    def compile(function: Callable, compiled: bool) -> Callable:
        if not compiled:
            return function
        # Each size of batch that memory running out leads to is compiled anew; torch would give up at eight.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        # Deterministic: a sum's order is not chosen by timing, which is not the same in every process.
        return torch.compile(function, dynamic=False, fullgraph=True, options={"deterministic": True})

    @cached_property
    def prefix(self) -> Prefix:
        """Keys and values of the shared prefix, computed once."""
        hidden = self.language.embed_tokens(torch.tensor(self.prompt.prefix, device=self.device))
        positions = torch.arange(len(hidden), device=self.device)
        cos, sin = self.rotation(hidden, positions)
        return decode_prefix(self.language.layers, hidden, cos, sin)

    def rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines, float32 (N, D), of positions int64 (N,)."""
        cos, sin = self.language.rotary_emb(hidden.new_empty(0, dtype=torch.float32), positions[None])
        return cos[0], sin[0]

    @abstractmethod
    def image_features(self, batch: dict[str, Any]) -> Tensor:
        """The vision tower and projector: (image tokens, C), in the order of the image tokens, filling at the end."""

    @torch.inference_mode()
    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Logits of A and B: a collated batch on the model's device -> float32 (B, 2), B without filling."""
        features, slots = self.image_features(batch), batch["image_slots"]
        hidden = self.language.embed_tokens(batch["input_ids"])
        hidden[slots] = features[: len(slots)].to(hidden.dtype)
        cos, sin = self.rotation(hidden, batch["positions"])
        last = decode_last(self.language.layers, hidden, cos, sin, batch["layout"], self.prefix, self._run_layer)
        return two_letter_logits(self.model.lm_head, self.language.norm(last), self.prompt.answer_tokens)[
            : len(batch["count"])
        ]


def load_model(checkpoint: Path, *, device: str, dtype: str, adapter: Path | None = None) -> PreTrainedModel:
    """Load a checkpoint's weights straight to `device`; with `adapter`, LoRA layers stay unmerged beside them.

    Raises InputError where weights are missing, cut off or of other shapes, and where the adapter does not fit.
    """
    try:
        with _silence():
            model, report = AutoModelForImageTextToText.from_pretrained(
                checkpoint,
                dtype=DTYPES[dtype],
                device_map=device,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
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
    if report["unexpected_keys"]:
        names = sorted(report["unexpected_keys"])
        logger.warning("%s: %d weights have no place in the model, such as %s", checkpoint, len(names), names[0])
    if adapter is not None:
        with _silence():
            model = _with_adapter(model, adapter)
    return model.eval().requires_grad_(False)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers and peft from saying in many lines what our errors say in one; no progress bar into a file."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _with_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with LoRA layers in place, its own class and names kept. Every adapter weight must find its layer."""
    read_adapter_config(adapter)
    try:
        PeftConfig.from_pretrained(adapter)
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False)
        loaded = wrapped.load_adapter(adapter, "default", is_trainable=False)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _unusable(
            adapter, error, "a LoRA adapter of this model", "name the adapter that was trained on it"
        ) from None
    left_out = [name for name, part in wrapped.named_modules() if isinstance(part, BaseTunerLayer) and _is_read(name)]
    if left_out:
        raise InputError(
            adapter,
            found=f"LoRA weights on {left_out[0].removeprefix('base_model.model.')}, which scoring reads unadapted",
            expected="LoRA on the layers of the language model, the vision tower or the projector",
            remedy="merge the adapter and score the merged model",
        )
    strange = list(loaded.unexpected_keys) + [key for key in loaded.missing_keys if "lora_" in key]
    if strange:
        raise InputError(
            adapter,
            found=f"{len(strange)} weights that do not match the model's layers, such as {strange[0]}",
            expected="a LoRA adapter of this model",
            remedy="name the adapter that was trained on it",
        )
    return wrapped.get_base_model()


def _is_read(name: str) -> bool:
    """Whether scoring reads the weights of this module itself, past whatever an adapter puts around it."""
    return name.endswith("lm_head") or "patch_embed" in name


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
