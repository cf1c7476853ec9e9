"""Qwen2.5-VL against its own pipeline: qwen_vl_utils' resizing, the checkpoint's processor, transformers' forward."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from dfbench.data.images import ImageError, load_image
from dfbench.errors import InputError
from dfbench.models.hf import TransformersScorer, load_model
from dfbench.models.qwen2_5_vl import MAX_PIXELS, MIN_PIXELS, QwenPrompt, QwenScorer
from dfbench.models.registry import load_prompt, load_scorer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SIZES = [(28, 28), (120, 90), (256, 64), (40, 160), (333, 471), (57, 33), (9, 9)]


@pytest.fixture(scope="module")
def prompt(checkpoints) -> QwenPrompt:
    return load_prompt(checkpoints["qwen2.5"])


@pytest.fixture(scope="module")
def processor(checkpoints):
    return AutoProcessor.from_pretrained(checkpoints["qwen2.5"])


@pytest.fixture(scope="module")
def plain(checkpoints):
    """The same weights in transformers' own, untouched model."""
    return AutoModelForImageTextToText.from_pretrained(checkpoints["qwen2.5"], dtype=torch.float32).eval()


def resize(rgb: Image.Image) -> Image.Image:
    """What ms-swift's template does before the image processor, under the bounds that train.sh exports."""
    return fetch_image({"image": rgb, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS})


def process(processor, question: str, rgb: Image.Image) -> dict[str, Tensor]:
    """Model inputs by transformers' processor, the prompt written out by hand."""
    user = question.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    text = f"{SYSTEM}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    return processor(text=[text], images=[resize(rgb)], do_resize=False, return_tensors="pt")


# -------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_the_real_pipeline_bit_for_bit(prompt, processor, draw, size):
    rgb = draw(seed=1, width=size[0], height=size[1])
    prepared = prompt.prepare("<image>Real?", rgb)
    reference = processor.image_processor(images=[resize(rgb)], do_resize=False, return_tensors="pt")
    assert torch.equal(prompt.pixel_values(prepared.pixels, torch.float32), reference["pixel_values"])
    assert [1, *prepared.grid] == reference["image_grid_thw"][0].tolist()


def test_every_pixel_value_is_normalised_as_by_the_processor(prompt, processor):
    """All 256 values in all three channels."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(7, axis=0).repeat(7, axis=1)
    image = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    reference = processor.image_processor(images=[image], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(prompt.pixel_values(prompt.prepare("Real?", image).pixels, torch.float32), reference)


def test_images_keep_their_size_up_to_multiples_of_28_within_the_bounds(prompt, draw):
    """A side of n pixels becomes the nearest multiple of 28; patches are 14 wide."""
    sizes = {
        (1024, 1024): (74, 74),  # 1024 / 28 = 36.57 -> 37 blocks of 2 patches
        (512, 384): (28, 36),  # 384 / 28 = 13.7 -> 14 blocks; 512 / 28 = 18.3 -> 18; rows come first
        (28, 28): (4, 4),  # under 4 blocks: scaled up to 56x56
        (2000, 2000): (78, 78),  # above 1,536 blocks: sqrt(1536) = 39.2 -> 39 blocks
    }
    for size, grid in sizes.items():
        assert prompt.prepare("Real?", Image.new("RGB", size)).grid == grid


def test_impossible_proportions_are_an_image_error(prompt):
    with pytest.raises(ImageError, match=r"^4002x20 pixels: .*200"):
        prompt.prepare("Real?", Image.new("RGB", (4002, 20)))


def test_an_image_processor_of_other_patches_than_the_vision_towers_is_refused(checkpoints, tmp_path):
    """Its image tokens would stand for other features than theirs."""
    folder = shutil.copytree(
        checkpoints["qwen2.5"], tmp_path / "merged", ignore=shutil.ignore_patterns("*.safetensors")
    )
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["merge_size"] = 4
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="the image processor's patches are not the vision tower's"):
        load_prompt(folder)


# -------------------------------------------------------------------------------------------------------------- prompt


@pytest.mark.parametrize(
    "question", ["<image>Real?", "<image>\nReal?", "<image>Real or generated? A or B. ", "<image>这是真的吗？"]
)
def test_token_ids_equal_the_processors(prompt, processor, draw, question):
    rgb = draw(seed=2, width=120, height=90)
    reference = process(processor, question, rgb)["input_ids"][0]
    assert torch.equal(prompt.prepare(question, rgb).input_ids, reference)


def test_a_question_without_image_tag_gets_one_in_front(prompt, draw):
    rgb = draw(seed=2, width=120, height=90)
    with_tag, without = prompt.prepare("<image>Real?", rgb), prompt.prepare("Real?", rgb)
    assert torch.equal(with_tag.input_ids, without.input_ids)


# ----------------------------------------------------------------------------------------------------- scores, whole


def plain_logits(model, processor, samples, photo_set) -> Tensor:
    letters = processor.tokenizer.convert_tokens_to_ids(["A", "B"])
    logits = []
    for sample in samples:
        question = sample.question if "<image>" in sample.question else "<image>" + sample.question
        inputs = process(processor, question, load_image(photo_set.path(sample)).rgb)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            logits.append(model(**inputs).logits[0, -1, letters])
    return torch.stack(logits)


def scored(scorer, samples, photo_set) -> Tensor:
    prompt = scorer.prompt
    return scorer.logits(
        prompt.collate([prompt.prepare(s.question, load_image(photo_set.path(s)).rgb) for s in samples])
    )


# Sums are in another order, which float32 shows in its last digits; float64 shows that there is nothing else. (The
# vision tower rotates in float32 in both.)
PRECISIONS = [(torch.float32, 2e-5), (torch.float64, 2e-6)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_logits_equal_the_plain_forward(checkpoints, prompt, processor, photo_set, dtype, tolerance):
    ours, plain = (load_model(checkpoints["qwen2.5"], device="cpu", dtype="float32").to(dtype) for _ in range(2))
    expected = plain_logits(plain, processor, photo_set.samples, photo_set)
    assert expected.std(dim=0).min() > 1e-3, "all images score alike: nothing would be seen"
    # The packed scorer comes last, for it changes the model.
    for scorer_class, engine in ((TransformersScorer, "transformers"), (QwenScorer, "packed")):
        found = scored(scorer_class(ours, prompt.for_engine(engine)), photo_set.samples, photo_set)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("size", [(120, 90), (256, 64), (40, 160), (28, 28)])
def test_positions_equal_transformers(prompt, plain, processor, draw, size):
    """What the language model's rotary embedding is given, for the tokens that the batch holds of its own."""
    rgb = draw(seed=3, width=size[0], height=size[1])
    inputs = process(processor, "<image>Real?", rgb)
    expected, _ = plain.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    batch = prompt.collate([prompt.prepare("<image>Real?", rgb)])
    own = batch["positions"].shape[1]
    assert own > 0.5 * expected.shape[2]
    assert torch.equal(batch["positions"], expected[:, 0, -own:])


def deeper(checkpoint, folder):
    """A checkpoint whose vision tower has windowed blocks too, as the real one's."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    config = model.config
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 3, [1]
    torch.manual_seed(5)
    changed = type(model)(config)
    changed.load_state_dict(model.state_dict(), strict=False)
    for weight in changed.model.visual.blocks.parameters():
        weight.data = torch.randn(weight.shape) * (weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.1)
    changed.save_pretrained(folder)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def test_windowed_attention_equals_the_plain_tower(checkpoints, tmp_path, draw):
    """Images larger than a window (8x8 patches), whose windows are cut off at the border."""
    folder = deeper(checkpoints["qwen2.5"], tmp_path / "deeper")
    scorer = load_scorer(load_prompt(folder), device="cpu", dtype="float32")
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    rgbs = [draw(seed=seed, width=w, height=h) for seed, (w, h) in enumerate([(300, 200), (120, 420), (56, 56)])]
    with torch.inference_mode():
        outputs = [plain(**process(processor, "<image>Real?", rgb)).logits[0, -1] for rgb in rgbs]
    expected = torch.stack(outputs)[:, list(scorer.prompt.answer_tokens)]
    ours = scorer.logits(scorer.prompt.collate([scorer.prompt.prepare("Real?", rgb) for rgb in rgbs]))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)
