"""The reference: any image-text model as transformers runs it, by its own forward pass on padded batches.

Every fast path is tested against it, and a model without one is scored by it.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dfbench.errors import InputError
from dfbench.models.base import DTYPES, Scorer, blame
from dfbench.models.checkpoints import check_adapter, check_weights

_UNFIT = {
    "missing_keys": "missing keys",
    "mismatched_keys": "mismatched keys",
    "unexpected_keys": "weights have no place in the model",
}
"""What transformers reports of weights that are not the model's -> how we say it."""

_OTHER_ADAPTER = "not a LoRA adapter of this model", "Name the adapter that was trained on it."
"""What is wrong, and what to do."""


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

    Raises InputError where weights are missing, superfluous, cut off, of other shapes or types, or not finite, and
    where the adapter does not fit (see `check_adapter` too).
    """
    check_weights(checkpoint)
    if adapter is not None:
        check_adapter(checkpoint, adapter)
        check_weights(adapter)
    with blame(checkpoint, "its weights cannot be loaded", "Download the weights again."), _silence():
        model, report = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            dtype=DTYPES[dtype],
            device_map=device,
            attn_implementation=_attention(checkpoint),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            use_safetensors=True,
        )
    for kind, what in _UNFIT.items():
        if names := sorted(str(key if isinstance(key, str) else key[0]) for key in report[kind]):
            raise InputError(
                f"{checkpoint}: {len(names)} {what}, such as {names[0]}. Download or merge the weights again."
            )
    if adapter is not None:
        with _silence():
            model = _with_adapter(model, adapter)
    _check_finite(model, adapter or checkpoint, dtype)
    return model.eval().requires_grad_(False)


def check_fit(checkpoint: Path, adapter: Path) -> None:
    """Raise InputError where an adapter does not fit a checkpoint's layers. Weights of the checkpoint are not read."""
    unusable = blame(checkpoint, "no model can be made from its config.json", "Download it again.")
    with unusable, _silence(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    with _silence():
        _with_adapter(model, adapter)


def _check_finite(model: PreTrainedModel, folder: Path, dtype: str) -> None:
    """Raise InputError for a weight that is not a number: every image would be without an answer."""
    for name, weight in model.named_parameters():
        if weight.dtype not in DTYPES.values() or not weight.numel():  # 8-bit weights have no minimum
            continue
        if not torch.stack(weight.detach().aminmax()).isfinite().all():
            raise InputError(
                f"{folder}: NaN or infinite values in the weight {name}, in {dtype}. Download or train the weights "
                f"again, or choose another --dtype if they are finite in the file."
            )


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
    with blame(adapter, *_OTHER_ADAPTER):
        PeftConfig.from_pretrained(adapter)
        wrapped: Any = PeftModel.from_pretrained(model, adapter, is_trainable=False)
        loaded = wrapped.load_adapter(adapter, "default", is_trainable=False)
    strange = list(loaded.unexpected_keys) + [key for key in loaded.missing_keys if "lora_" in key]
    if strange:
        found = f"{len(strange)} weights that do not match the model's layers, such as {strange[0]}"
        raise InputError(f"{adapter}: {_OTHER_ADAPTER[0]} ({found}). {_OTHER_ADAPTER[1]}")
    return wrapped.get_base_model()
