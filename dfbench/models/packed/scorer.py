"""What the families' packed scorers share, and which models they take: only those whose every part they compute."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dfbench.errors import InputError
from dfbench.models.base import Prompt, Scorer
from dfbench.models.packed.fp8 import quantize
from dfbench.models.packed.layers import fuse_decoder_layer, fuse_vision_block
from dfbench.models.packed.packing import Prefix, answer_logits, decode_last, decode_prefix, decoder_layer

FIXED_ROTARY_TYPES = ("default", "linear", "yarn", "llama3")
"""Rotary embeddings whose angles depend on a token's own position alone."""

LONGEST_PROMPT = 8192
"""Tokens. A "dynamic" rotary embedding is the default one up to `max_position_embeddings`."""


class PackedScorer(Scorer):
    """Two logits for each image by one packed prefill. Fuses the model's layers in place.

    text_models: the `model_type`s of language models that `packing` computes: llama-like, with nothing added.
    vision_block: one layer of the vision tower, (module, hidden, ...) -> hidden; a static method.
    compiled: compile the layers; every batch must then be padded to one PackShape.
    Raises InputError for a model that `unsupported` finds fault with.
    """

    text_models: tuple[str, ...]
    vision_block: Callable[..., Tensor]

    def __init__(self, model: PreTrainedModel, prompt: Prompt, *, compiled: bool = False) -> None:
        if reason := self.unsupported(model.config) or _adapted_beyond(model):
            raise InputError(
                f"{prompt.checkpoint}: the packed engine does not know {reason}. Use --engine transformers."
            )
        super().__init__(model, prompt)
        self.language = model.model.language_model
        for layer in self.language.layers:
            fuse_decoder_layer(layer)
        for block in self.vision_blocks:
            fuse_vision_block(block)
        self._run_layer, self._run_block = (
            _compile(function) if compiled else function for function in (decoder_layer, self.vision_block)
        )

    @classmethod
    def unsupported(cls, config: PreTrainedConfig) -> str | None:
        """What the packed layers would leave out or compute otherwise than the model's own; None: nothing.

        config: with its defaults filled in, as transformers reads it.
        """
        text = config.text_config
        rotary = getattr(text, "rope_parameters", None) or {}
        rotary_type = rotary.get("rope_type")
        fixed = rotary_type in FIXED_ROTARY_TYPES or (
            rotary_type == "dynamic" and text.max_position_embeddings >= LONGEST_PROMPT
        )
        layer_types = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
        faults = {
            f"a text model of type {text.model_type}": text.model_type not in cls.text_models,
            f"layers with {', '.join(layer_types)}": layer_types,
            f"a rotary embedding of type {rotary_type or 'unknown'}": not fixed,
            "a rotary embedding of a part of each head": rotary.get("partial_rotary_factor", 1) != 1,
            "quantized weights": getattr(config, "quantization_config", None),
        }
        return next((fault for fault, found in faults.items() if found), None)

    def quantize(self) -> None:
        """Use 8-bit products (`dfbench.models.packed.fp8`) in the language model and the vision MLPs, in place."""
        quantize(self.language.layers)
        quantize(block.mlp for block in self.vision_blocks)
        self.__dict__.pop("prefix", None)

    @property
    @abstractmethod
    def vision_blocks(self) -> nn.ModuleList:
        """The layers of the vision tower."""

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
        """The vision tower and projector: (image tokens, C), in the order of the image tokens, padding at the end."""

    @torch.inference_mode()
    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Logits of A and B: a packed batch on the model's device -> float32 (B, 2), B without padding."""
        features, slots = self.image_features(batch), batch["image_slots"]
        hidden = self.language.embed_tokens(batch["input_ids"])
        hidden[slots] = features[: len(slots)].to(hidden.dtype)
        cos, sin = self.rotation(hidden, batch["positions"])
        last = decode_last(self.language.layers, hidden, cos, sin, batch["layout"], self.prefix, self._run_layer)
        logits = answer_logits(self.model.lm_head, self.language.norm(last), self.prompt.answer_tokens)
        return logits[: len(batch["count"])]


def _compile(function: Callable) -> Callable:
    # Each size of batch that memory running out leads to is compiled anew; torch would give up at eight.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # Deterministic: a sum's order is not chosen by timing, which is not the same in every process.
    return torch.compile(function, dynamic=False, fullgraph=True, options={"deterministic": True})


def _adapted_beyond(model: PreTrainedModel) -> str | None:
    """LoRA on a layer whose own weights the packed engine reads, past whatever an adapter puts around it."""
    adapted = (name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer))
    found = next((name for name in adapted if name.endswith("lm_head") or "patch_embed" in name), None)
    return found and f"LoRA weights on {found}"
