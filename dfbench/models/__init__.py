"""The model families that can be scored: each has a prompt (CPU) and a scorer (GPU)."""

from pathlib import Path

from dfbench.errors import InputError
from dfbench.models.base import Prompt, Scorer, load_model, read_config


def load_prompt(checkpoint: Path, protocol: str = "upstream") -> Prompt:
    """The CPU side of a checkpoint folder, by its config's `model_type`. Raises InputError for any other family."""
    family = read_config(checkpoint).get("model_type")
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


def load_scorer(prompt: Prompt, *, device: str, dtype: str, adapter: Path | None = None) -> Scorer:
    """The GPU side of the same checkpoint, weights loaded."""
    from dfbench.models.internvl import InternVLPrompt, InternVLScorer
    from dfbench.models.qwen2_5_vl import QwenScorer

    model = load_model(prompt.checkpoint, device=device, dtype=dtype, adapter=adapter)
    return (InternVLScorer if isinstance(prompt, InternVLPrompt) else QwenScorer)(model, prompt)
