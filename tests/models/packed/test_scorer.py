"""The packed scorers against transformers' own forward pass, and what they refuse instead of guessing."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from dfbench.data.images import load_image
from dfbench.demo.tiny_models import make_internvl3
from dfbench.errors import InputError
from dfbench.models.base import ModelInputs, Prompt, Scorer
from dfbench.models.hf import TransformersScorer
from dfbench.models.internvl import InternVLScorer
from dfbench.models.packed.scorer import PackedScorer
from dfbench.models.qwen2_5_vl import QwenScorer
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.scoring.batching import PlannedBatch, fitting_shape

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")


@pytest.fixture(scope="module", params=AGENTS)
def scorer(request, checkpoints) -> Scorer:
    return load_scorer(load_prompt(checkpoints[request.param]), device="cpu", dtype="float32")


@pytest.fixture
def prepared(scorer, prepare_all) -> list[ModelInputs]:
    return prepare_all(scorer.prompt)


# Sums in another order: the last digits of float32, no more.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def test_packed_equals_single(scorer, prepared, logits):
    packed = logits(scorer, prepared)
    assert packed.shape == (len(prepared), 2)
    assert packed.dtype == torch.float32
    single = torch.cat([logits(scorer, [item]) for item in prepared])
    torch.testing.assert_close(packed, single, **CLOSE)


def test_order_and_neighbours_do_not_matter(scorer, prepared, logits):
    expected = logits(scorer, prepared)
    order = [7, 2, 11, 0, 5]
    torch.testing.assert_close(logits(scorer, [prepared[i] for i in order]), expected[order], **CLOSE)


def test_the_same_batch_gives_the_same_bits(scorer, prepared, logits):
    assert torch.equal(logits(scorer, prepared[:5]), logits(scorer, prepared[:5]))


def test_padding_to_a_fixed_shape_changes_nothing(scorer, prepared, photo_set, logits):
    """What compiled code is fed: batches of other sizes, padded to the largest."""
    sizes = [
        scorer.prompt.sequence_size(sample.question, *load_image(photo_set.path(sample)).rgb.size)
        for sample in photo_set.samples
    ]
    shape = fitting_shape([PlannedBatch(tuple(photo_set.samples), tuple(sizes))])
    for part in (slice(0, 12), slice(3, 8), slice(11, 12)):
        padded = scorer.logits(scorer.prompt.collate(prepared[part], shape))
        torch.testing.assert_close(padded, logits(scorer, prepared[part]), **CLOSE)


@pytest.mark.parametrize("agent", AGENTS)
def test_text_before_the_image(checkpoints, photo_set, agent, logits):
    """Questions that share less than the system text; each scores as it does among its own kind."""
    rgb = load_image(photo_set.path(photo_set.samples[0])).rgb
    questions = ["Look: <image>Real?", "<image>Real?", "Look closely: <image>\nReal?"]
    alone = []
    for question in questions:
        scorer = load_scorer(load_prompt(checkpoints[agent]), device="cpu", dtype="float32")
        scorer.prompt.share_prefix([question])
        alone.append(logits(scorer, [scorer.prompt.prepare(question, rgb)]))
    scorer = load_scorer(load_prompt(checkpoints[agent]), device="cpu", dtype="float32")
    scorer.prompt.share_prefix(questions)
    together = logits(scorer, [scorer.prompt.prepare(question, rgb) for question in questions])
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_logits_tell_images_and_questions_apart(scorer, photo_set, logits):
    first, second = (load_image(photo_set.path(sample)).rgb.resize((90, 90)) for sample in photo_set.samples[:2])
    prepare = scorer.prompt.prepare
    values = logits(scorer, [prepare("Real?", first), prepare("Real?", second), prepare("Generated?", first)])
    assert (values[0] - values[1]).abs().max() > 1e-3
    assert (values[0] - values[2]).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("weights", ["merged", "adapter"])
def test_the_packed_engine_equals_transformers(scorer, prepared, make_adapter, tmp_path, logits, weights):
    adapter = None
    if weights == "adapter":
        adapter = make_adapter(scorer.prompt.checkpoint, tmp_path / "adapter", scale=0.1)
    usual = {"device": "cpu", "dtype": "float32", "adapter": adapter}
    packed, plain = (load_scorer(scorer.prompt, **usual, engine=engine) for engine in ("packed", "transformers"))
    expected = logits(plain, prepared)
    torch.testing.assert_close(logits(packed, prepared), expected, **CLOSE)
    if adapter:
        assert (expected - logits(scorer, prepared)).abs().max() > 1e-2, "the adapter changes nothing"


def test_an_unmerged_adapter_equals_the_merged_model(scorer, prepared, make_adapter, tmp_path, logits):
    from peft import PeftModel

    checkpoint = scorer.prompt.checkpoint
    adapter = make_adapter(checkpoint, tmp_path / "adapter")
    unmerged = load_scorer(scorer.prompt, device="cpu", dtype="float32", adapter=adapter)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    merged = type(scorer)(PeftModel.from_pretrained(model, adapter).merge_and_unload().eval(), scorer.prompt)
    ours = logits(unmerged, prepared)
    torch.testing.assert_close(ours, logits(merged, prepared), rtol=0, atol=1e-4)
    assert (ours - logits(scorer, prepared)).abs().max() > 1e-2, "the adapter changes nothing"


@pytest.mark.parametrize(("agent", "layer"), [("qwen2.5", "lm_head"), ("internvl3", "projection")])
def test_an_adapter_on_weights_that_are_read_directly_is_refused(checkpoints, make_adapter, tmp_path, agent, layer):
    adapter = make_adapter(checkpoints[agent], tmp_path / "adapter", target_modules=["q_proj", layer])
    with pytest.raises(InputError, match=rf"does not know LoRA weights on .*{layer}\. Use --engine transformers"):
        load_scorer(load_prompt(checkpoints[agent]), device="cpu", dtype="float32", adapter=adapter)


# ------------------------------------------------------------------------------- models that it would score wrongly


def forced(model: PreTrainedModel, scorer: type[PackedScorer], prompt: Prompt, monkeypatch) -> PackedScorer:
    """The packed scorer of a copy of the model, its own objections overruled."""
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "unsupported", classmethod(lambda *_: None))
        return scorer(copy.deepcopy(model), prompt)


QWEN3 = {"model_type": "qwen3", "head_dim": 16}
"""The language model of InternVL3.5: queries and keys are normalised by head."""


@pytest.fixture
def internvl3_5(tmp_path) -> Path:
    """A tiny checkpoint of InternVL3.5's shape, whose tokenizer puts no BOS."""
    model, processor = make_internvl3(seed=0, text=QWEN3)
    processor.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "internvl3.5")
    return tmp_path / "internvl3.5"


def test_internvl3_5_falls_back_and_equals_transformers(internvl3_5, photo_set, logits, monkeypatch, caplog):
    """By its own chat template and tiles, and the logits of its own forward pass, which need its norms."""
    prompt = load_prompt(internvl3_5, "native")
    assert caplog.messages == [
        f"{internvl3_5}: scored by transformers, slower: the packed engine does not know a text model of type qwen3"
    ]
    processor = AutoProcessor.from_pretrained(internvl3_5)
    model = AutoModelForImageTextToText.from_pretrained(internvl3_5, dtype=torch.float32).eval()
    inputs, expected = [], []
    for sample in photo_set.samples:
        question, rgb = sample.question.replace("<image>", "").strip(), load_image(photo_set.path(sample)).rgb
        inputs.append(prompt.prepare(sample.question, rgb))
        turn = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
        theirs = processor(text=[text], images=[rgb], return_tensors="pt")
        assert theirs["input_ids"][0].tolist() == inputs[-1].input_ids.tolist()
        theirs["pixel_values"] = prompt.pixel_values(inputs[-1].pixels, torch.float32)  # not torchvision's resizing
        with torch.inference_mode():
            expected.append(model(**theirs).logits[0, -1, list(prompt.answer_tokens)])
    scorer = load_scorer(prompt, device="cpu", dtype="float32")
    torch.testing.assert_close(logits(scorer, inputs), torch.stack(expected), rtol=1e-5, atol=1e-5)
    guessed = logits(forced(model, InternVLScorer, prompt.for_engine("packed"), monkeypatch), inputs)
    assert (guessed - torch.stack(expected)).abs().max() > 0.1


SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}


def test_a_sliding_window_falls_back_and_equals_transformers(checkpoints, prepare_all, logits, monkeypatch):
    """Of Qwen2.5-VL: each token sees the eight before it."""
    prompt = load_prompt(checkpoints["qwen2.5"])
    model = other_qwen(checkpoints["qwen2.5"], SLIDING)
    reason = "layers with sliding_attention"
    assert QwenScorer.unsupported(model.config) == reason
    inputs = prepare_all(prompt)
    expected = plain_logits(model, prompt, inputs, logits)
    with_window = logits(forced(model, QwenScorer, prompt, monkeypatch), inputs)
    assert (with_window - expected).abs().max() > 0.1


def other_qwen(checkpoint: Path, text: dict[str, object]) -> PreTrainedModel:
    """A tiny Qwen2.5-VL whose text config differs in these values, with the same weights."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    config = type(model.config)(**{**model.config.to_dict(), "text_config": changed_text(model.config, text)})
    changed = AutoModelForImageTextToText.from_config(config).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def changed_text(config, text: dict[str, object]) -> dict[str, object]:
    kept = config.text_config.to_dict()
    kept.pop("layer_types", None)  # worked out from the rest
    rotary = kept["rope_parameters"] | text.get("rope_parameters", {})
    return {**kept, **text, "rope_parameters": rotary}


def plain_logits(model: PreTrainedModel, prompt: Prompt, inputs: list[ModelInputs], logits: Callable) -> Tensor:
    """Of one prompt after the other, by the reference scorer."""
    scorer = TransformersScorer(model, prompt.for_engine("transformers"))
    return torch.cat([logits(scorer, [item]) for item in inputs])


ROTARY = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 32,
    },
}
KNOWN, REFUSED = True, False
TEXT_MODELS = {
    "llama": ({}, KNOWN),
    "llama, biases": ({"attention_bias": True, "mlp_bias": True}, KNOWN),
    "llama, other head size": ({"head_dim": 32}, KNOWN),
    "llama, gelu": ({"hidden_act": "gelu"}, KNOWN),
    "llama, linear": ({"rope_parameters": ROTARY["linear"]}, KNOWN),
    "llama, yarn": ({"rope_parameters": ROTARY["yarn"]}, KNOWN),
    "llama, llama3": ({"rope_parameters": ROTARY["llama3"]}, KNOWN),
    "llama, dynamic": ({"rope_parameters": ROTARY["dynamic"], "max_position_embeddings": 32768}, KNOWN),
    "llama, dynamic, short": (
        {"rope_parameters": ROTARY["dynamic"], "max_position_embeddings": 32},
        REFUSED,
    ),
    "llama, longrope": ({"rope_parameters": ROTARY["longrope"], "max_position_embeddings": 64}, REFUSED),
    "qwen2": ({"model_type": "qwen2"}, KNOWN),
    "qwen2, sliding": ({"model_type": "qwen2", **SLIDING}, REFUSED),
    "qwen3": (QWEN3, REFUSED),
    "mistral, sliding": ({"model_type": "mistral", "sliding_window": 8}, REFUSED),
    "gemma2": ({"model_type": "gemma2", "head_dim": 16}, REFUSED),
    "granite": ({"model_type": "granite", "attention_multiplier": 0.1, "residual_multiplier": 0.5}, REFUSED),
    "ernie4_5": ({"model_type": "ernie4_5"}, REFUSED),
    "helium": ({"model_type": "helium", "head_dim": 16}, REFUSED),
    "hunyuan_v1_dense": ({"model_type": "hunyuan_v1_dense", "head_dim": 16}, REFUSED),
    "bitnet": ({"model_type": "bitnet"}, REFUSED),
    "olmo2": ({"model_type": "olmo2"}, REFUSED),
    "smollm3": ({"model_type": "smollm3", "no_rope_layer_interval": 2}, REFUSED),
    "glm": ({"model_type": "glm", "head_dim": 16}, REFUSED),
    "stablelm": ({"model_type": "stablelm"}, REFUSED),
    "starcoder2": ({"model_type": "starcoder2"}, REFUSED),
}


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_no_text_model_is_scored_otherwise_than_by_transformers(checkpoints, prepare_all, logits, kind):
    """Either refused by name, or equal."""
    text, known = TEXT_MODELS[kind]
    if "rope_parameters" in text:
        text = {**text, "rope_parameters": {"rope_theta": 5e7, **text["rope_parameters"]}}
    model, _ = make_internvl3(seed=0, text=text)
    check(model.eval(), InternVLScorer, load_prompt(checkpoints["internvl3"]), known, prepare_all, logits)


QWEN_TEXTS = {
    "as it is": ({}, KNOWN),
    "linear": ({"rope_parameters": ROTARY["linear"]}, KNOWN),
    "yarn": ({"rope_parameters": ROTARY["yarn"]}, KNOWN),
    "dynamic, short": ({"rope_parameters": ROTARY["dynamic"], "max_position_embeddings": 32}, REFUSED),
    "sliding": (SLIDING, REFUSED),
    "sliding in the last layer": ({**SLIDING, "max_window_layers": 1}, REFUSED),
}


@pytest.mark.parametrize("kind", QWEN_TEXTS)
def test_no_form_of_qwens_text_model_is_scored_otherwise(checkpoints, prepare_all, logits, kind):
    text, known = QWEN_TEXTS[kind]
    model = other_qwen(checkpoints["qwen2.5"], text)
    check(model, QwenScorer, load_prompt(checkpoints["qwen2.5"]), known, prepare_all, logits)


VISION = {
    "rms norm": ({"norm_type": "rms_norm"}, KNOWN),
    "q and k norms": ({"use_qk_norm": True}, KNOWN),
    "no biases": ({"attention_bias": False}, KNOWN),
    "final norm": ({"use_mean_pooling": False}, KNOWN),
    "relu": ({"hidden_act": "relu"}, KNOWN),
    "no positions": ({"use_absolute_position_embeddings": False}, REFUSED),
}


@pytest.mark.parametrize("kind", VISION)
def test_no_vision_tower_is_scored_otherwise_than_by_transformers(checkpoints, prepare_all, logits, kind):
    vision, known = VISION[kind]
    model, _ = make_internvl3(seed=0, vision=vision)
    check(model.eval(), InternVLScorer, load_prompt(checkpoints["internvl3"]), known, prepare_all, logits)


def check(model, scorer, prompt, known, prepare_all, logits) -> None:
    reason = scorer.unsupported(model.config)
    assert (reason is None) is known, reason
    inputs = prepare_all(prompt)[:6]
    expected = plain_logits(model, prompt, inputs, logits)
    assert expected.isfinite().all()
    if known:
        torch.testing.assert_close(logits(scorer(model, prompt), inputs), expected, **CLOSE)
    else:
        with pytest.raises(InputError, match=r"the packed engine does not know .*Use --engine transformers"):
            scorer(model, prompt)


def test_a_text_model_without_a_rotary_embedding_is_refused(checkpoints):
    config = AutoConfig.from_pretrained(checkpoints["internvl3"])
    config.text_config = AutoConfig.for_model("bert")
    assert InternVLScorer.unsupported(config) == "a text model of type bert"


@pytest.mark.parametrize(
    ("part", "name", "value", "reason"),
    [
        (None, "quantization_config", {"quant_method": "fp8"}, "quantized weights"),
        (None, "vision_feature_layer", [-1, 2], "vision_feature_layer [-1, 2]"),
        (None, "vision_feature_select_strategy", "full", "image features with the class token"),
        ("vision_config", "image_size", [56, 84], "tiles or patches that are not square"),
        ("vision_config", "patch_size", [14, 28], "tiles or patches that are not square"),
        ("text_config", "rope_parameters", None, "a rotary embedding of type unknown"),
        (
            "text_config",
            "rope_parameters",
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "a rotary embedding of a part of each head",
        ),
    ],
)
def test_a_config_is_taken_for_what_it_says(checkpoints, part, name, value, reason):
    config = AutoConfig.from_pretrained(checkpoints["internvl3"])
    assert InternVLScorer.unsupported(config) is None
    setattr(getattr(config, part) if part else config, name, value)
    assert InternVLScorer.unsupported(config) == reason
