"""The contract of every model family: packing changes nothing, and only weights and adapters that fit are loaded."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from dfbench.data.images import load_image
from dfbench.errors import InputError
from dfbench.models.base import ModelInputs, Prompt, Scorer, fingerprint, load_model
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.scoring.batching import PlannedBatch, fitting_shape

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")


@pytest.fixture(scope="module", params=AGENTS)
def scorer(request, checkpoints) -> Scorer:
    return load_scorer(load_prompt(checkpoints[request.param]), device="cpu", dtype="float32")


@pytest.fixture
def prepared(scorer, photo_set) -> list[ModelInputs]:
    return [scorer.prompt.prepare(s.question, load_image(photo_set.path(s)).rgb) for s in photo_set.samples]


def logits(scorer: Scorer, prepared: list[ModelInputs]) -> Tensor:
    return scorer.logits(scorer.prompt.collate(prepared))


# ---------------------------------------------------------------------------------------------------------- packing


# Sums in another order: the last digits of float32, no more.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def test_packed_equals_single(scorer, prepared):
    packed = logits(scorer, prepared)
    assert packed.shape == (len(prepared), 2)
    assert packed.dtype == torch.float32
    single = torch.cat([logits(scorer, [item]) for item in prepared])
    torch.testing.assert_close(packed, single, **CLOSE)


def test_order_and_neighbours_do_not_matter(scorer, prepared):
    expected = logits(scorer, prepared)
    order = [7, 2, 11, 0, 5]
    torch.testing.assert_close(logits(scorer, [prepared[i] for i in order]), expected[order], **CLOSE)


def test_the_same_batch_gives_the_same_bits(scorer, prepared):
    assert torch.equal(logits(scorer, prepared[:5]), logits(scorer, prepared[:5]))


def test_filling_up_to_a_fixed_shape_changes_nothing(scorer, prepared, photo_set):
    """What compiled code is fed: batches of other sizes, filled up to the largest."""
    sizes = [
        scorer.prompt.sequence_size(sample.question, *load_image(photo_set.path(sample)).rgb.size)
        for sample in photo_set.samples
    ]
    shape = fitting_shape([PlannedBatch(tuple(photo_set.samples), tuple(sizes))])
    for part in (slice(0, 12), slice(3, 8), slice(11, 12)):
        filled = scorer.logits(scorer.prompt.collate(prepared[part], shape))
        torch.testing.assert_close(filled, logits(scorer, prepared[part]), **CLOSE)


@pytest.mark.parametrize("protocol", ["upstream", "native"])
@pytest.mark.parametrize("agent", AGENTS)
def test_the_cost_of_an_image_is_what_it_takes_in_the_end(checkpoints, photo_set, agent, protocol):
    prompt = load_prompt(checkpoints[agent], protocol)
    for sample in photo_set.samples:
        rgb = load_image(photo_set.path(sample)).rgb
        prepared, cost = prompt.prepare(sample.question, rgb), prompt.sequence_size(sample.question, *rgb.size)
        assert cost.tokens == len(prepared.input_ids) - len(prompt.prefix)
        assert cost.vision == len(prepared.pixels)
        assert cost[:2] == prompt.size_of_inputs(prepared)[:2]


@pytest.mark.parametrize("agent", AGENTS)
def test_text_before_the_image(checkpoints, photo_set, agent):
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


def test_logits_tell_images_and_questions_apart(scorer, photo_set):
    first, second = (load_image(photo_set.path(sample)).rgb.resize((90, 90)) for sample in photo_set.samples[:2])
    prepare = scorer.prompt.prepare
    values = logits(scorer, [prepare("Real?", first), prepare("Real?", second), prepare("Generated?", first)])
    assert (values[0] - values[1]).abs().max() > 1e-3
    assert (values[0] - values[2]).abs().max() > 1e-3


def test_letters_are_a_and_b(scorer):
    assert scorer.prompt.tokenizer.decode(list(scorer.prompt.answer_tokens)) == "AB"


def test_a_prompt_survives_pickling(scorer, photo_set):
    """Worker processes hold a copy."""
    rgb = load_image(photo_set.path(photo_set.samples[0])).rgb
    copy: Prompt = pickle.loads(pickle.dumps(scorer.prompt))  # noqa: S301 - our own bytes
    ours, theirs = scorer.prompt.prepare("Real?", rgb), copy.prepare("Real?", rgb)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.pixels, theirs.pixels)


def test_the_description_of_a_prompt_is_json_and_shows_the_prompt(scorer):
    description = json.loads(json.dumps(scorer.prompt.describe()))
    assert "{question}" in description["prompt"]
    assert description["protocol"]
    assert description["image"]


# ---------------------------------------------------------------------------------------------- checkpoints that fail


@pytest.fixture
def copy_of(checkpoints, tmp_path):
    """A function: agent -> a copy of its checkpoint that may be damaged, with or without weights."""

    def copy(agent: str, *, weights: bool = True) -> Path:
        left_out = shutil.ignore_patterns(*([] if weights else ["*.safetensors"]))
        return shutil.copytree(checkpoints[agent], tmp_path / agent, ignore=left_out)

    return copy


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Download the weights, or name the merged folder"):
        load_prompt(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        load_prompt(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "qwen2', "[]", "\xff"])
def test_a_broken_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json: found .*download it again"):
        load_prompt(tmp_path)


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"model_type is .bert.; expected qwen2_5_vl or internvl"):
        load_prompt(tmp_path)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("lost", ["tokenizer.json", "token*", "*token*", "*[!g].json"])
def test_a_checkpoint_without_tokenizer_is_refused(copy_of, agent, lost):
    folder = copy_of(agent, weights=False)
    for path in folder.glob(lost):
        path.unlink()
    with pytest.raises(InputError) as caught:
        load_prompt(folder)
    assert str(caught.value).startswith(f"{folder}: ")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_a_cut_off_processor_file_is_refused(copy_of, name):
    folder = copy_of("qwen2.5", weights=False)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"its config, tokenizer or image processor cannot be used .*Download"):
        load_prompt(folder)


def test_a_config_with_values_of_another_type_is_refused(copy_of):
    path = copy_of("internvl3", weights=False) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_token_id": "<IMG_CONTEXT>"}))
    with pytest.raises(InputError, match=r"image_token_id"):
        load_prompt(path.parent)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_letter_that_is_not_one_token_is_refused(copy_of, agent):
    folder = copy_of(agent, weights=False)
    path = folder / "tokenizer.json"
    # `\n` before the answer and the A itself melt into one token.
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": 9, "content": "\nA", "special": True, "single_word": False,
                                    "lstrip": False, "rstrip": False, "normalized": False})  # fmt: skip
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the answer A as .* expected exactly one token more"):
        load_prompt(folder)


def test_missing_weights_are_refused(copy_of):
    folder = copy_of("internvl3", weights=False)
    with pytest.raises(InputError, match=r"internvl3: found .*download the weights again"):
        load_model(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_shard_is_refused(copy_of, share):
    path = copy_of("internvl3") / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"internvl3: found .*expected a complete checkpoint"):
        load_model(path.parent, device="cpu", dtype="float32")


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(change(weights), path, metadata={"format": "pt"})


def test_one_missing_weight_is_refused_by_name(copy_of):
    folder = copy_of("internvl3")
    name = next(name for name in load_file(folder / "model.safetensors") if "layers.1.self_attn.q_proj" in name)
    change_weights(folder, lambda weights: {key: value for key, value in weights.items() if key != name})
    with pytest.raises(InputError, match=r"found 1 missing keys, such as .*layers\.1\.self_attn\.q_proj"):
        load_model(folder, device="cpu", dtype="float32")


def test_a_weight_of_another_shape_is_refused(copy_of):
    folder = copy_of("internvl3")
    change_weights(folder, lambda w: {k: (v[:-1].clone() if k.endswith("lm_head.weight") else v) for k, v in w.items()})
    with pytest.raises(InputError, match=r"lm_head"):
        load_model(folder, device="cpu", dtype="float32")


def test_weights_that_have_no_place_are_mentioned(copy_of, caplog):
    """As of a deeper model under this config."""
    folder = copy_of("internvl3")
    deeper = {"model.language_model.layers.9.self_attn.q_proj.weight": torch.zeros(96, 96)}
    change_weights(folder, lambda weights: {**weights, **deeper})
    load_model(folder, device="cpu", dtype="float32")
    assert "1 weights have no place in the model, such as model.language_model.layers.9" in caplog.text


# ------------------------------------------------------------------------------------------------------------ adapters


def make_adapter(checkpoint: Path, folder: Path, *, rank: int = 2, seed: int = 0, **config) -> Path:
    """A LoRA adapter as peft writes it, with weights that change something."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    config = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": rank, "lora_alpha": 4, **config}
    wrapped = get_peft_model(model, LoraConfig(**config))
    rng = torch.Generator().manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=rng) * 0.3
    wrapped.save_pretrained(folder)
    return folder


def test_an_unmerged_adapter_equals_the_merged_model(scorer, prepared, tmp_path):
    checkpoint = scorer.prompt.checkpoint
    adapter = make_adapter(checkpoint, tmp_path / "adapter")
    unmerged = load_scorer(scorer.prompt, device="cpu", dtype="float32", adapter=adapter)
    merged = type(scorer)(merge(checkpoint, adapter), scorer.prompt)
    ours = logits(unmerged, prepared)
    torch.testing.assert_close(ours, logits(merged, prepared), rtol=0, atol=1e-4)
    assert (ours - logits(scorer, prepared)).abs().max() > 1e-2, "the adapter changes nothing"


def merge(checkpoint: Path, adapter: Path):
    from peft import PeftModel

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


def test_an_adapter_of_another_family_is_refused(checkpoints, tmp_path):
    adapter = make_adapter(checkpoints["qwen2.5"], tmp_path / "adapter", target_modules=r".*visual.*qkv")
    with pytest.raises(InputError, match=r"adapter: found .*expected a LoRA adapter of this model"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


@pytest.mark.parametrize("other", ["qwen2.5", "internvl2.5"])
def test_an_adapter_of_other_shapes_is_refused(checkpoints, tmp_path, other):
    adapter = make_adapter(checkpoints[other], tmp_path / "adapter")
    with pytest.raises(InputError, match=r"adapter: found .*expected a LoRA adapter of this model"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


def test_an_adapter_for_layers_that_the_model_lacks_is_refused(checkpoints, tmp_path):
    """As of a deeper model: the weights of the first layers fit, the others have no place."""
    adapter = make_adapter(checkpoints["internvl3"], tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    deeper = {name.replace("layers.1.", "layers.7."): value.clone() for name, value in weights.items()}
    save_file({**weights, **deeper}, path)
    with pytest.raises(InputError, match=r"weights that do not match the model's layers, such as .*layers\.7"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


def test_an_adapter_that_lacks_layers_is_refused(checkpoints, tmp_path):
    adapter = make_adapter(checkpoints["internvl3"], tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "layers.1." not in name}, path)
    with pytest.raises(InputError, match=r"weights that do not match the model's layers, such as .*layers\.1"):
        load_model(checkpoints["internvl3"], device="cpu", dtype="float32", adapter=adapter)


def test_memory_that_does_not_hold_the_weights_is_no_damage(scorer, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(InputError, match=r"not enough GPU memory for its weights .*1\.00 GiB.*free memory on the GPU"):
        load_scorer(scorer.prompt, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no config", r"adapter: found no adapter_config\.json; expected a LoRA adapter"),
        ("empty config", r"adapter_config\.json: found broken JSON .*expected the config of a LoRA adapter"),
        ("no weights", r"adapter: found no adapter_model\.safetensors; expected an adapter's weights"),
        ("cut-off weights", r"adapter: found .*expected a LoRA adapter of this model"),
    ],
)
def test_a_damaged_adapter_is_refused(checkpoints, tmp_path, damage, message):
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


# --------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_follows_the_content_not_the_place(copy_of, checkpoints):
    copy = copy_of("internvl3")
    assert fingerprint(copy) == fingerprint(checkpoints["internvl3"])
    assert fingerprint(copy) != fingerprint(checkpoints["internvl2.5"])


def test_the_fingerprint_sees_changed_weights(copy_of):
    copy = copy_of("internvl3")
    before = fingerprint(copy)
    change_weights(copy, lambda weights: {name: value * 1.001 for name, value in weights.items()})
    assert fingerprint(copy) != before
