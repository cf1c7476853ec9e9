"""The model families that can be scored: each has a prompt (CPU) and a scorer (GPU)."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from dfbench.errors import InputError, shorten
from dfbench.models.base import Prompt, Scorer, load_model, read_config


def usable_checkpoint(checkpoint: Path) -> Path:
    """The folder to load: an original InternVL one is converted, once, beside itself. Raises InputError."""
    from dfbench.models.internvl_checkpoint import native_checkpoint

    read_config(checkpoint)
    return native_checkpoint(checkpoint)


def load_prompt(checkpoint: Path, protocol: str = "upstream") -> Prompt:
    """The CPU side of a checkpoint folder, by its config's `model_type`.

    Raises InputError for any other family, and where the tokenizer or the image processor is missing or broken.
    """
    checkpoint = usable_checkpoint(checkpoint)
    family = read_config(checkpoint).get("model_type")
    try:
        return _prompt(family, checkpoint, protocol)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            checkpoint,
            found=shorten(reason, 200),
            expected="the config, tokenizer and image processor of the model",
            remedy="download the whole folder again",
        ) from None


def _prompt(family: str | None, checkpoint: Path, protocol: str) -> Prompt:
    if family == "qwen2_5_vl":
        from dfbench.models.qwen2_5_vl import QwenPrompt

        return QwenPrompt(checkpoint)
    if family == "internvl":
        from dfbench.models.internvl import InternVLPrompt

        return InternVLPrompt(checkpoint, protocol)
    raise InputError(
        checkpoint / "config.json",
        found=f"model_type {family}",
        expected="qwen2_5_vl or internvl",
        remedy="name a Qwen2.5-VL or InternVL checkpoint",
    )


def load_scorer(
    prompt: Prompt, *, device: str, dtype: str, adapter: Path | None = None, compiled: bool = False, fp8: bool = False
) -> Scorer:
    """The GPU side of the same checkpoint, weights loaded; `compiled` and `fp8`: see `Scorer`, `Scorer.quantize`.

    Raises InputError as `load_model` does, and where the GPU's memory does not hold the weights.
    """
    try:
        model = load_model(prompt.checkpoint, device=device, dtype=dtype, adapter=adapter)
        scorer = scorer_of(model, prompt, compiled=compiled)
        if fp8:
            scorer.quantize()
    except torch.OutOfMemoryError as error:
        raise InputError(
            prompt.checkpoint,
            found=f"not enough GPU memory for its weights ({shorten(str(error), 100)})",
            expected=f"memory for the model in {dtype}",
            remedy="free memory on the GPU, or use a larger one, and repeat the command",
        ) from None
    return scorer


def scorer_of(model: PreTrainedModel, prompt: Prompt, *, compiled: bool = False) -> Scorer:
    """The scorer of a model that is loaded already. It fuses the model's layers in place."""
    from dfbench.models.internvl import InternVLPrompt, InternVLScorer
    from dfbench.models.qwen2_5_vl import QwenScorer

    return (InternVLScorer if isinstance(prompt, InternVLPrompt) else QwenScorer)(model, prompt, compiled=compiled)
