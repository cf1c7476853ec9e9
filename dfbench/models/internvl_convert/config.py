"""Config of an original InternVL checkpoint (`internvl_chat`, remote code) -> config of transformers' native InternVL.

Names and layout are those of the published native folders (`OpenGVLab/InternVL3-9B-hf` and its kin), so that other
tools read it too. What native InternVL cannot express is refused; only what acts in training alone (drop path) is left
out.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dfbench.errors import InputError, shorten
from dfbench.io import read_json_object

LANGUAGE_MODELS = {"InternLM2ForCausalLM": "llama", "InternLM3ForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""Language models of the original checkpoints -> `model_type` of the native text config that computes the same.

InternLM2 is Llama with a fused `wqkv` and other names; InternLM3 is Llama.
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint. Raises InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file. Correct the path, or download the checkpoint's files.")
    return read_json_object(path, expected="a JSON object", remedy="download it again")


def native_config(original: Mapping[str, Any], image_token_id: int, where: Path) -> dict[str, Any]:
    """The native `config.json` as a dictionary.

    original: the checkpoint's own `config.json` (`where`, for messages).
    Raises InputError where a value is missing or has no counterpart.
    """
    try:
        vision, text = original["vision_config"], original["llm_config"]
        _require(original, "select_layer", -1, -1, where)
        _require(original, "ps_version", "v2", "v1", where)
        _require(original, "use_thumbnail", True, False, where)
        ratio, patches = original.get("downsample_ratio", 0.5), vision["image_size"] // vision["patch_size"]
        dtype = original.get("torch_dtype") or original.get("dtype") or "bfloat16"
        return {
            "architectures": ["InternVLForConditionalGeneration"],
            "downsample_ratio": ratio,
            "image_seq_length": round((patches * ratio) ** 2),
            "image_token_id": image_token_id,
            "model_type": "internvl",
            "projector_hidden_act": "gelu",
            "text_config": _text_config(text, dtype, where),
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "transformers_version": version("transformers"),
            "vision_config": _vision_config(vision, dtype),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        }
    except KeyError as error:
        raise InputError(f"{where}: it has no {error.args[0]}. Download it again.") from error


def _vision_config(vision: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    size, patch = vision["image_size"], vision["patch_size"]
    config = {key: vision[key] for key in _VISION_KEYS} | {
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
        "torch_dtype": dtype,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": vision.get("qk_normalization", True),
    }
    return dict(sorted(config.items()))


def _text_config(text: Mapping[str, Any], dtype: str, where: Path) -> dict[str, Any]:
    architecture = (text.get("architectures") or [None])[0]
    if architecture not in LANGUAGE_MODELS:
        raise InputError(
            f"{where}: the language model is {architecture}; expected one of {', '.join(LANGUAGE_MODELS)}. "
            f"Use a checkpoint of the InternVL2.5 or InternVL3 family."
        )
    _require(text, "tie_word_embeddings", False, False, where)
    if LANGUAGE_MODELS[architecture] == "qwen2":
        _require(text, "use_sliding_window", False, False, where)
        special = {"use_sliding_window": False}
    else:
        # A checkpoint with biases is refused by the names of its weights.
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        special = {"attention_bias": False, "head_dim": head_dim, "mlp_bias": False}
    config = {key: text[key] for key in _TEXT_KEYS} | {
        "architectures": [architecture],
        "attention_dropout": text.get("attention_dropout", 0.0),
        "bos_token_id": text.get("bos_token_id"),
        "eos_token_id": text.get("eos_token_id"),
        "hidden_act": text.get("hidden_act", "silu"),
        "initializer_range": text.get("initializer_range", 0.02),
        "model_type": LANGUAGE_MODELS[architecture],
        "pad_token_id": text.get("pad_token_id"),
        "rope_scaling": _rope_scaling(text, where),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    return dict(sorted((config | special).items()))


def _rope_scaling(text: Mapping[str, Any], where: Path) -> dict[str, Any] | None:
    """Scaling of the rotary positions; "dynamic" differs from none only beyond `max_position_embeddings` tokens."""
    scaling = text.get("rope_scaling")
    if not scaling:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("dynamic", "linear") or set(scaling) - {"type", "rope_type", "factor"}:
        raise InputError(
            f"{where}: rope_scaling is {shorten(scaling)}; expected type dynamic or linear, and a factor. "
            f"Use a checkpoint of the InternVL2.5 or InternVL3 family."
        )
    return {"factor": scaling["factor"], "rope_type": kind, "type": kind}


def _require(config: Mapping[str, Any], key: str, needed: Any, default: Any, where: Path) -> None:
    """Refuse a value without a native counterpart. default: what the original code takes where the key is absent."""
    value = config.get(key, default)
    if value != needed:
        raise InputError(
            f"{where}: {key} is {value!r}; expected {needed!r}, all that transformers' native InternVL can do. "
            f"Keep using the original code for this checkpoint."
        )
