"""Config of an original InternVL checkpoint (`internvl_chat`, remote code) -> config of transformers' native InternVL.

Names and layout are those of the published native folders (`OpenGVLab/InternVL3-9B-hf` and its kin), so that other
tools read it too. What native InternVL cannot express is refused; only what acts in training alone (drop path) is left
out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import __version__

from dfbench.errors import InputError, shorten

LANGUAGE_MODELS = {"InternLM2ForCausalLM": "llama", "InternLM3ForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""Language models of the original checkpoints -> `model_type` of the native text config that computes the same.

InternLM2 is Llama with a fused `wqkv` and other names; InternLM3 is Llama with its biases named apart.
"""

_VISION_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
)


def native_config(original: Mapping[str, Any], image_token_id: int, where: Path) -> dict[str, Any]:
    """The native `config.json` as a dictionary.

    original: the checkpoint's own `config.json` (`where`, for messages).
    Raises InputError where a value is missing or has no counterpart.
    """
    vision, text = _section(original, "vision_config", where), _section(original, "llm_config", where)
    _require(original, where, "select_layer", [-1], -1)
    _require(original, where, "ps_version", ["v2"], "v1")
    _require(original, where, "dynamic_image_size", [True], False)
    _require(original, where, "use_thumbnail", [True], False)
    _require(original, where, "pad2square", [False], False)
    _require(original, where, "force_image_size", [None, vision.get("image_size")], None)
    ratio, patches = original.get("downsample_ratio", 0.5), vision["image_size"] // vision["patch_size"]
    dtype = original.get("torch_dtype") or original.get("dtype") or "bfloat16"
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": ratio,
        "image_seq_length": round((patches * ratio) ** 2),
        "image_token_id": image_token_id,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": _text_config(text, where) | {"torch_dtype": dtype},
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": __version__,
        "vision_config": _vision_config(vision, where) | {"torch_dtype": dtype},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _vision_config(vision: Mapping[str, Any], where: Path) -> dict[str, Any]:
    _require(vision, where, "norm_type", ["layer_norm", "rms_norm"], "rms_norm")
    normalised = vision.get("qk_normalization", True)
    if normalised:
        # Native InternVL fixes the epsilon of these two norms, the original takes the layers' own.
        _require(vision, where, "layer_norm_eps", [1e-6], 1e-6)
    size, patch = vision["image_size"], vision["patch_size"]
    return {key: vision[key] for key in _VISION_KEYS} | {
        "attention_bias": vision.get("qkv_bias", False),
        "attention_dropout": vision.get("attention_dropout", 0.0),
        "hidden_act": vision.get("hidden_act", "gelu"),
        "hidden_dropout_prob": 0.0,
        "image_size": [size, size],
        "initializer_range": vision.get("initializer_range", 0.02),
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": vision.get("norm_type", "rms_norm"),
        "num_channels": vision.get("num_channels", 3),
        "patch_size": [patch, patch],
        "projection_dropout": vision.get("dropout", 0.0),
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": normalised,
    }


def _text_config(text: Mapping[str, Any], where: Path) -> dict[str, Any]:
    architecture = (text.get("architectures") or [None])[0]
    if architecture not in LANGUAGE_MODELS:
        raise InputError(
            where,
            found=f"the language model {architecture}",
            expected=f"one of {', '.join(LANGUAGE_MODELS)}",
            remedy="use a checkpoint of the InternVL2.5 or InternVL3 family",
        )
    _require(text, where, "tie_word_embeddings", [False], False)
    common = {key: text[key] for key in _TEXT_KEYS} | {
        "architectures": [architecture],
        "attention_dropout": text.get("attention_dropout", 0.0),
        "hidden_act": text.get("hidden_act", "silu"),
        "initializer_range": text.get("initializer_range", 0.02),
        "model_type": LANGUAGE_MODELS[architecture],
        "rope_scaling": _rope_scaling(text, where),
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    tokens = {key: text.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    special = _qwen2(text, where) if architecture == "Qwen2ForCausalLM" else _llama(text, where)
    return common | tokens | special


def _llama(text: Mapping[str, Any], where: Path) -> dict[str, Any]:
    bias = text.get("bias", False)
    separate = text["architectures"][0] == "InternLM3ForCausalLM"
    if separate:
        _require(text, where, "qkv_bias", [bias], False)  # Llama has one switch for the projections of q, k, v and out
    return {
        "attention_bias": bias,
        "head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        "mlp_bias": bias and separate,
    }


def _qwen2(text: Mapping[str, Any], where: Path) -> dict[str, Any]:
    _require(text, where, "use_sliding_window", [False], False)
    return {"use_sliding_window": False}


def _rope_scaling(text: Mapping[str, Any], where: Path) -> dict[str, Any] | None:
    """Scaling of the rotary positions; "dynamic" differs from none only beyond `max_position_embeddings` tokens."""
    scaling = text.get("rope_scaling")
    if not scaling:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("dynamic", "linear") or set(scaling) - {"type", "rope_type", "factor"}:
        raise InputError(
            where,
            found=f"rope_scaling {shorten(scaling)}",
            expected="type dynamic or linear, and a factor",
            remedy="use a checkpoint of the InternVL2.5 or InternVL3 family",
        )
    return {"factor": scaling["factor"], "rope_type": kind, "type": kind}


def _section(original: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    section = original.get(name) or {}
    keys = (*_VISION_KEYS, "image_size", "patch_size") if name == "vision_config" else _TEXT_KEYS
    missing = [key for key in keys if key not in section]
    if missing:
        raise InputError(
            where, found=f"no {name}.{missing[0]}", expected="a complete config", remedy="download it again"
        )
    return section


def _require(config: Mapping[str, Any], where: Path, key: str, allowed: Sequence[Any], default: Any) -> None:
    """Refuse a value without a native counterpart. default: what the original code takes where the key is absent."""
    value = config.get(key, default)
    if value not in allowed:
        raise InputError(
            where,
            found=f"{key} {value!r}",
            expected=" or ".join(repr(choice) for choice in allowed),
            remedy="transformers' native InternVL cannot express it; keep using the original code for this checkpoint",
        )
