"""The reference scorer: padding changes nothing, and only weights and adapters that fit are loaded."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Gemma2Config

from dfbench.errors import InputError
from dfbench.models.base import Scorer
from dfbench.models.hf import load_model
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.scoring.batching import make_plan, measure_sizes
from dfbench.scoring.engine import Preparation

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")

# Sums in another order: the last digits of float32, no more.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=AGENTS)
def scorer(request, checkpoints) -> Scorer:
    return load_scorer(load_prompt(checkpoints[request.param], engine="transformers"), device="cpu", dtype="float32")


def test_a_padded_batch_equals_single_prompts(scorer, prepare_all, logits):
    inputs = prepare_all(scorer.prompt)
    assert len({len(item.input_ids) for item in inputs}) > 3
    padded = logits(scorer, inputs)
    assert (padded.shape, padded.dtype) == ((len(inputs), 2), torch.float32)
    torch.testing.assert_close(padded, torch.cat([logits(scorer, [item]) for item in inputs]), **CLOSE)
    assert padded.std(dim=0).min() > 1e-3, "all images score alike: nothing would be seen"


def test_images_of_many_tiles_in_one_batch_equal_single_ones(checkpoints, prepare_all, logits):
    prompt = load_prompt(checkpoints["internvl3"], "native", engine="transformers")
    scorer = load_scorer(prompt, device="cpu", dtype="float32")
    inputs = prepare_all(prompt)
    assert {len(item.pixels) for item in inputs} >= {1, 5, 7}
    torch.testing.assert_close(logits(scorer, inputs), torch.cat([logits(scorer, [item]) for item in inputs]), **CLOSE)


def test_what_worker_processes_collate_is_what_the_scorer_takes(scorer, photo_set, prepare_all, logits):
    """Planned as in a run, whose budget counts whole prompts: they share no prefix."""
    prompt, samples = scorer.prompt, photo_set.samples
    prompt.share_prefix({sample.question for sample in samples})
    plan = make_plan(samples, measure_sizes(samples, photo_set.root, prompt), token_budget=400, batch_size=5)
    batches = Preparation(plan.batches, photo_set.root, prompt)
    packs = [pack for index in range(len(batches)) for pack in batches[index].packs]
    assert len(packs) > 2
    rows = torch.cat([scorer.logits(pack.inputs) for pack in packs])
    found = dict(zip((sample.image for pack in packs for sample in pack.samples), rows, strict=True))
    expected = logits(scorer, prepare_all(prompt))
    torch.testing.assert_close(torch.stack([found[sample.image] for sample in samples]), expected, **CLOSE)


def test_an_unmerged_adapter_equals_the_merged_model(scorer, prepare_all, logits, make_adapter, tmp_path):
    """On the output head too, which the packed engine leaves to this one."""
    checkpoint, inputs = scorer.prompt.checkpoint, prepare_all(scorer.prompt)
    adapter = make_adapter(checkpoint, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    unmerged = load_scorer(scorer.prompt, device="cpu", dtype="float32", adapter=adapter)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    merged = copy.copy(scorer)
    merged.model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    ours = logits(unmerged, inputs)
    torch.testing.assert_close(ours, logits(merged, inputs), rtol=0, atol=1e-4)
    assert (ours - logits(scorer, inputs)).abs().max() > 1e-2, "the adapter changes nothing"


def test_attention_that_caps_its_logits_is_not_left_to_torchs_kernel(checkpoints, tmp_path):
    """That one takes no cap, and transformers hands it none, without a word."""
    model = load_model(checkpoints["internvl3"], device="cpu", dtype="float32")
    assert model.config._attn_implementation == "sdpa"
    config, text = model.config, model.config.text_config.to_dict()
    sizes = {name: text[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")}
    config.text_config = Gemma2Config(**sizes, num_hidden_layers=2, intermediate_size=96, head_dim=16)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    capped = load_model(tmp_path, device="cpu", dtype="float32")
    assert capped.model.language_model.config._attn_implementation == "eager"


# ---------------------------------------------------------------------------------------------------- weights that fail


def test_missing_weights_are_refused(copy_of):
    folder = copy_of("internvl3", weights=False)
    with pytest.raises(InputError, match=r"internvl3: no model\.safetensors\. Copy or download"):
        load_model(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_shard_is_refused(copy_of, share):
    path = copy_of("internvl3") / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"internvl3/model\.safetensors: not a complete safetensors file .*Download"):
        load_model(path.parent, device="cpu", dtype="float32")


def test_one_missing_weight_is_refused_by_name(copy_of, change_weights):
    folder = copy_of("internvl3")
    name = next(name for name in load_file(folder / "model.safetensors") if "layers.1.self_attn.q_proj" in name)
    change_weights(folder, lambda weights: {key: value for key, value in weights.items() if key != name})
    with pytest.raises(InputError, match=r"internvl3: 1 missing keys, such as .*layers\.1\.self_attn\.q_proj"):
        load_model(folder, device="cpu", dtype="float32")


def test_a_weight_of_another_shape_is_refused(copy_of, change_weights):
    folder = copy_of("internvl3")
    change_weights(folder, lambda w: {k: (v[:-1].clone() if k.endswith("lm_head.weight") else v) for k, v in w.items()})
    with pytest.raises(InputError, match=r"lm_head"):
        load_model(folder, device="cpu", dtype="float32")


def test_weights_that_have_no_place_are_refused(copy_of, change_weights):
    """As of a deeper model under this config."""
    folder = copy_of("internvl3")
    deeper = {"model.language_model.layers.9.self_attn.q_proj.weight": torch.zeros(96, 96)}
    change_weights(folder, lambda weights: {**weights, **deeper})
    with pytest.raises(
        InputError, match=r"1 weights have no place in the model, such as model\.language_model\.layers\.9"
    ):
        load_model(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("kind", ["int8", "int64", "bool", "complex64", "float8_e4m3fn"])
@pytest.mark.parametrize("of", ["checkpoint", "adapter"])
def test_weights_that_would_have_to_be_cast_are_refused(copy_of, change_weights, make_adapter, tmp_path, kind, of):
    folder, adapter = copy_of("internvl3"), None
    if of == "adapter":
        adapter = make_adapter(folder, tmp_path / "adapter")
        weights = load_file(adapter / "adapter_model.safetensors")
        save_file({k: v.to(getattr(torch, kind)) for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    else:
        change_weights(folder, lambda w: {k: v.to(getattr(torch, kind)) if "q_proj" in k else v for k, v in w.items()})
    with pytest.raises(
        InputError, match=rf"{adapter or folder}/.*_proj.* is of type .*; expected one of BF16, F16, F32"
    ):
        load_model(folder, device="cpu", dtype="float32", adapter=adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", ["checkpoint", "adapter"])
def test_weights_that_are_not_finite_are_refused(copy_of, change_weights, make_adapter, tmp_path, value, of):
    folder, adapter = copy_of("internvl3"), None
    if of == "adapter":
        adapter = make_adapter(folder, tmp_path / "adapter")
        weights = load_file(adapter / "adapter_model.safetensors")
        next(iter(weights.values()))[0, 0] = value
        save_file(weights, adapter / "adapter_model.safetensors")
    else:
        change_weights(folder, lambda w: {k: v.fill_(value) if k.endswith("norm.weight") else v for k, v in w.items()})
    message = rf"{adapter or folder}: NaN or infinite values in the weight .*, in float32\. Download or train"
    with pytest.raises(InputError, match=message):
        load_model(folder, device="cpu", dtype="float32", adapter=adapter)


def test_weights_too_large_for_the_type_are_said_to_be(copy_of, change_weights):
    folder = copy_of("internvl3")
    change_weights(folder, lambda w: {k: v * 1e6 if k.endswith("norm.weight") else v for k, v in w.items()})
    load_model(folder, device="cpu", dtype="float32")
    with pytest.raises(InputError, match=r"infinite values in the weight .*, in float16\. .*choose another --dtype"):
        load_model(folder, device="cpu", dtype="float16")


def test_pickled_weights_are_refused(copy_of):
    folder = copy_of("internvl3")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    load_model(folder, device="cpu", dtype="float32")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"internvl3: pytorch_model\.bin is a pickle, which can run code"):
        load_model(folder, device="cpu", dtype="float32")


# --------------------------------------------------------------------------------------------------- adapters that fail


def of_any_base(adapter: Path) -> Path:
    """The adapter, its base model's name taken out."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    return adapter


def test_an_adapter_of_another_family_is_refused(checkpoints, make_adapter, tmp_path):
    adapter = of_any_base(make_adapter(checkpoints["qwen2.5"], tmp_path / "adapter", target_modules=r".*visual.*qkv"))
    with pytest.raises(InputError, match=r"adapter: not a LoRA adapter of this model"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


@pytest.mark.parametrize("other", ["qwen2.5", "internvl2.5"])
def test_an_adapter_of_other_shapes_is_refused(checkpoints, make_adapter, tmp_path, other):
    adapter = of_any_base(make_adapter(checkpoints[other], tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"adapter: not a LoRA adapter of this model"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


def test_an_adapter_for_layers_that_the_model_lacks_is_refused(checkpoints, make_adapter, tmp_path):
    """As of a deeper model: the weights of the first layers fit, the others have no place."""
    adapter = make_adapter(checkpoints["internvl3"], tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    deeper = {name.replace("layers.1.", "layers.7."): value.clone() for name, value in weights.items()}
    save_file({**weights, **deeper}, path)
    with pytest.raises(InputError, match=r"weights that do not match the model's layers, such as .*layers\.7"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


def test_an_adapter_that_lacks_layers_is_refused(checkpoints, make_adapter, tmp_path):
    adapter = make_adapter(checkpoints["internvl3"], tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "layers.1." not in name}, path)
    with pytest.raises(InputError, match=r"weights that do not match the model's layers, such as .*layers\.1"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no config", r"adapter: no adapter_config\.json in this folder\. Name"),
        ("empty config", r"adapter_config\.json.* broken JSON .*the config of a LoRA adapter"),
        ("no weights", r"adapter: no adapter_model\.safetensors"),
        ("cut-off weights", r"adapter_model\.safetensors: not a complete safetensors file"),
    ],
)
def test_a_damaged_adapter_is_refused(checkpoints, make_adapter, tmp_path, damage, message):
    adapter = make_adapter(checkpoints["internvl3"], tmp_path / "adapter")
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "empty config":
        config.write_text("")
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=message):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


def test_an_adapter_of_another_model_of_the_same_shapes_is_refused(copy_of, change_weights, make_adapter, tmp_path):
    folder = copy_of("internvl3")
    adapter = make_adapter(folder, tmp_path / "adapter")
    other = shutil.copytree(folder, tmp_path / "other")
    change_weights(other, lambda weights: {name: value * 1.001 for name, value in weights.items()})
    load_model(folder, device="cpu", dtype="float32", adapter=adapter)
    with pytest.raises(InputError, match=r"adapter: it was trained on .*internvl3, whose weights are not those of"):
        load_model(other, device="cpu", dtype="float32", adapter=adapter)
