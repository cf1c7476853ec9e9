"""The native config of an original checkpoint, name by name, in the layout of the published native folders."""

import json

import pytest
import transformers
from transformers import AutoConfig

from dfbench.errors import InputError
from dfbench.models.internvl_convert.config import native_config
from dfbench.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "fixtures" / "internvl_oracle" / "model"
CONFIG = json.loads((MODEL / "config.json").read_text())


def test_every_entry_of_the_tiny_checkpoints_config():
    assert native_config(CONFIG, 1614, MODEL) == {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,  # 448 / 14 = 32 patches a side, every 2x2 of them one token
        "image_token_id": 1614,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 64,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "max_position_embeddings": 32768,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 1621,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": transformers.__version__,
        "vision_config": {
            "attention_bias": True,
            "attention_dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": 64,
            "image_size": [448, 448],
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "layer_norm_eps": 1e-06,
            "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": 4,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "patch_size": [14, 14],
            "projection_dropout": 0.0,
            "torch_dtype": "bfloat16",
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def test_transformers_reads_rope_and_dtype_from_it(native):
    config = AutoConfig.from_pretrained(native)
    rope = config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("dynamic", 2.0, 1_000_000)
    assert str(config.dtype) == "torch.bfloat16"
    assert config.tie_word_embeddings is False


def test_what_is_absent_has_the_originals_default_not_ours():
    # The original code's defaults are pixel shuffle v1, RMSNorm and normalised queries; absent keys mean these.
    with pytest.raises(InputError, match="ps_version is 'v1'"):
        native_config({key: value for key, value in CONFIG.items() if key != "ps_version"}, 0, MODEL)
    vision = {
        k: v for k, v in CONFIG["vision_config"].items() if k not in ("norm_type", "qk_normalization", "qkv_bias")
    }
    found = native_config(CONFIG | {"vision_config": vision}, 0, MODEL)["vision_config"]
    assert (found["norm_type"], found["use_qk_norm"], found["attention_bias"]) == ("rms_norm", True, False)


def test_dropout_of_the_projection_is_kept_for_training():
    vision = CONFIG["vision_config"] | {"dropout": 0.1, "attention_dropout": 0.2}
    found = native_config(CONFIG | {"vision_config": vision}, 0, MODEL)["vision_config"]
    assert (found["projection_dropout"], found["attention_dropout"], found["hidden_dropout_prob"]) == (0.1, 0.2, 0.0)
