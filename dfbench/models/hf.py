"""The reference: any image-text model as transformers runs it, by its own forward pass on padded batches.

Every fast path is tested against it, and a model without one is scored by it.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dfbench.errors import InputError, first_line
from dfbench.models.base import DTYPES, Scorer
from dfbench.models.checkpoints import read_adapter_config

logger = logging.getLogger(__name__)

_UNUSABLE = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError)
"""What transformers and peft raise for weights that are damaged or of another model."""


class TransformersScorer(Scorer):
    """Two logits for each image by the model's own forward pass."""

    @torch.inference_mode()
    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits of A and B: a batch of `Prompt.pad` on the model's device -> float32 (B, 2)."""
        arguments = {name: tensor for name, tensor in batch.items() if name != "pixels"}
        values = self.prompt.pixel_values(batch["pixels"], self.dtype)
        output = self.model(**arguments, pixel_values=values, use_cache=False, logits_to_keep=1)
        return output.logits[:, -1, list(self.prompt.answer_tokens)].float()


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
                attn_implementation=_attention(checkpoint),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except torch.OutOfMemoryError:
        raise
    except _UNUSABLE as error:
        raise InputError(
            f"{checkpoint}: its weights cannot be loaded ({first_line(error)}). Download the weights again."
        ) from None
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[kind])
            raise InputError(
                f"{checkpoint}: {len(names)} {kind.replace('_', ' ')}, such as {names[0]}. "
                f"Download or merge the weights again."
            )
    if report["unexpected_keys"]:
        names = sorted(report["unexpected_keys"])
        logger.warning("%s: %d weights have no place in the model, such as %s", checkpoint, len(names), names[0])
    if adapter is not None:
        with _silence():
            model = _with_adapter(model, adapter)
    return model.eval().requires_grad_(False)


def check_fit(checkpoint: Path, adapter: Path) -> None:
    """Raise InputError where an adapter does not fit a checkpoint's layers. Weights of the checkpoint are not read."""
    try:
        with _silence(), torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    except _UNUSABLE as error:
        raise InputError(
            f"{checkpoint}: no model can be made from its config.json ({first_line(error)}). Download it again."
        ) from None
    with _silence():
        _with_adapter(model, adapter)


def _attention(checkpoint: Path) -> str:
    """transformers' own attention for models that cap its logits, which torch's kernel would leave out in silence."""
    text = AutoConfig.from_pretrained(checkpoint).get_text_config()
    return "eager" if getattr(text, "attn_logit_softcapping", None) else "sdpa"


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
        wrapped: Any = PeftModel.from_pretrained(model, adapter, is_trainable=False)
        loaded = wrapped.load_adapter(adapter, "default", is_trainable=False)
    except torch.OutOfMemoryError:
        raise
    except _UNUSABLE as error:
        raise _misfit(adapter, first_line(error)) from None
    strange = list(loaded.unexpected_keys) + [key for key in loaded.missing_keys if "lora_" in key]
    if strange:
        raise _misfit(adapter, f"{len(strange)} weights that do not match the model's layers, such as {strange[0]}")
    return wrapped.get_base_model()


def _misfit(adapter: Path, reason: str) -> InputError:
    return InputError(
        f"{adapter}: not a LoRA adapter of this model ({reason}). Name the adapter that was trained on it."
    )
