"""InternVL: upstream's prompt and tiles worked out by hand, the native ones and the scores against transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    InternVLProcessor,
)

from dfbench.data.images import load_image
from dfbench.errors import InputError
from dfbench.models.base import ModelInputs
from dfbench.models.hf import TransformersScorer, load_model
from dfbench.models.internvl import InternVLPrompt, InternVLScorer, closest_grid
from dfbench.models.registry import load_prompt

# numpy's remark about tensors inside transformers' image processor.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")

SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
TILE = 56  # of the tiny checkpoints: the square image is 56 * 1024 / 448 = 128 pixels wide, a tile makes 4 tokens


@pytest.fixture(scope="module", params=["internvl2.5", "internvl3"])
def checkpoint(request, checkpoints):
    return checkpoints[request.param]


@pytest.fixture(scope="module")
def prompt(checkpoint) -> InternVLPrompt:
    return load_prompt(checkpoint)


def copy_with(checkpoint: Path, folder: Path, change: Callable[[dict[str, Any]], None], name="config.json") -> Path:
    """A copy of a checkpoint, one of whose JSON files `change` has been let loose on."""
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def plain_logits(model, input_ids: Tensor, tiles: Tensor, letters: tuple[int, int]) -> Tensor:
    with torch.inference_mode():
        output = model(
            input_ids=input_ids[None],
            attention_mask=torch.ones_like(input_ids)[None],
            pixel_values=tiles.to(model.dtype),
        )
    return output.logits[0, -1, list(letters)]


# --------------------------------------------------------------------------------------------------- upstream's tiles


def upstream_tiles(rgb: Image.Image, tile: int) -> list[Image.Image]:
    """1024x1024, then 2x2 tiles of 448 from an 896x896 copy, then a thumbnail of the 1024x1024 image (or in ratio)."""
    side = round(tile * 1024 / 448)
    square = rgb.resize((side, side), Image.Resampling.BICUBIC)
    grid = square.resize((2 * tile, 2 * tile), Image.Resampling.BICUBIC)
    corners = [(0, 0), (tile, 0), (0, tile), (tile, tile)]
    tiles = [grid.crop((x, y, x + tile, y + tile)) for x, y in corners]
    return [*tiles, square.resize((tile, tile), Image.Resampling.BICUBIC)]


NORMALISE = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]
)
"""Upstream's own last two steps."""


@pytest.mark.parametrize("size", [(120, 90), (40, 160), (256, 64), (128, 128), (333, 471)])
def test_upstream_tiles_equal_the_description(prompt, draw, size):
    rgb = draw(seed=1, width=size[0], height=size[1])
    expected = torch.stack([NORMALISE(tile) for tile in upstream_tiles(rgb, TILE)])
    found = prompt.pixel_values(prompt.prepare("Real?", rgb).pixels, torch.float32)
    assert torch.equal(found, expected)


def test_every_pixel_value_is_normalised_as_upstream_does(prompt):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    tiles = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    assert torch.equal(prompt.pixel_values(tiles, torch.float32)[0], NORMALISE(image))


@pytest.fixture
def real_sized(checkpoints, tmp_path):
    """The tiny InternVL3 with the released models' tiles: 448 pixels, 256 tokens each."""

    def enlarge(config: dict[str, Any]) -> None:
        config["vision_config"]["image_size"], config["image_seq_length"] = [448, 448], 256

    return copy_with(checkpoints["internvl3"], tmp_path / "448", enlarge)


@pytest.mark.parametrize("size", [(1024, 1024), (640, 480)])
def test_the_released_models_see_five_tiles_of_448_pixels(real_sized, draw, size):
    prompt = load_prompt(real_sized)
    rgb = draw(seed=2, width=size[0], height=size[1])
    prepared = prompt.prepare("Real?", rgb)
    assert prepared.pixels.shape == (5, 3, 448, 448)
    assert prepared.pixels.dtype == torch.uint8
    assert (prepared.input_ids == prompt.image_token_id).sum() == 5 * 256
    expected = np.stack([np.asarray(tile).transpose(2, 0, 1) for tile in upstream_tiles(rgb, 448)])
    assert np.array_equal(prepared.pixels.numpy(), expected)


# ------------------------------------------------------------------------------------------------------ closest_grid


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        # |1 - 1/1| = 0 for 1x1 and 2x2; 2x2 takes over as 1024 * 1024 > 0.5 * 4 * 448 * 448 = 401,408.
        ((1024, 1024), 6, (2, 2)),
        # The same tie, but 600 * 600 = 360,000 < 401,408: stays 1x1.
        ((600, 600), 6, (1, 1)),
        # Exactly half of the grid's pixels are not more than half: 0.5 * 401,408 * 2 = 896 * 448 -> ratio 2 is 2x1,
        # and 4x2 has 8 tiles, too many for 6; with 12, 4x2 needs more than 0.5 * 8 * 200,704 = 802,816 = 1267 ** 2 / 2.
        ((896, 448), 6, (2, 1)),
        ((896, 448), 12, (2, 1)),
        ((1792, 896), 12, (4, 2)),
        # Portrait: 448 / 1344 = 1/3 -> one column of three rows; landscape: three columns.
        ((448, 1344), 6, (1, 3)),
        ((1344, 448), 6, (3, 1)),
        # Panorama beyond the widest grid: 10 is closest to 6 columns.
        ((4480, 448), 6, (6, 1)),
        ((448, 4480), 6, (1, 6)),
        # 4:3 = 1.333: 3x2 is off by 0.1667, 1x1 and 2x2 by 0.3333, 2x1 by 0.6667.
        ((640, 480), 6, (3, 2)),
        # 3:4 = 0.75: 2x3 is off by 0.0833, 1x1 by 0.25.
        ((480, 640), 6, (2, 3)),
        # 1.25 lies midway between 1x1 and 3x2 (1.5), both off by exactly 0.25. In order of area 1x1 comes first; 2x2
        # takes over with 2000 * 1600 pixels, and so does 3x2 after it.
        ((2000, 1600), 6, (3, 2)),
        # The same with few pixels: 500 * 400 = 200,000 < 401,408, so that 1x1 stays.
        ((500, 400), 6, (1, 1)),
        # Only one tile allowed.
        ((1344, 448), 1, (1, 1)),
        ((1, 1), 12, (1, 1)),
    ],
)
def test_closest_grid(size, most, grid):
    assert closest_grid(*size, most, 448) == grid


# -------------------------------------------------------------------------------------------------- upstream's prompt


@pytest.mark.parametrize(
    ("question", "user"),
    [
        ("<image>\nReal?", "{image}\nReal?"),
        ("<image>Real?", "{image}Real?"),
        ("Real?", "{image}\nReal?"),
        ("<image>\nReal?  \n", "{image}\nReal?"),
        ("<image>这是真的吗？", "{image}这是真的吗？"),
    ],
)
def test_upstream_prompt_word_for_word(prompt, checkpoint, draw, question, user):
    """No line break after <|im_end|>; BOS first, as InternLM's tokenizer puts it; 5 tiles of 4 tokens."""
    image = "<img>" + "<IMG_CONTEXT>" * 20 + "</img>"
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n"
        f"{user.format(image=image)}<|im_end|><|im_start|>assistant\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    assert prompt.prepare(question, draw(seed=0, width=50, height=40)).input_ids.tolist() == expected


def test_bos_stands_once_and_only_before_an_internlm(checkpoints, tmp_path, draw):
    """InternVL3-9B's language model is InternLM3, of transformers' class Llama; a Qwen2 one has no BOS."""
    prompt = load_prompt(checkpoints["internvl3"])
    ids = prompt.prepare("Real?", draw(seed=0, width=50, height=40)).input_ids.tolist()
    assert ids[0] == prompt.tokenizer.bos_token_id
    assert ids.count(prompt.tokenizer.bos_token_id) == 1

    folder = copy_with(
        checkpoints["internvl3"], tmp_path / "qwen2", lambda config: config["text_config"].update(model_type="qwen2")
    )
    other = load_prompt(folder)
    assert other.prepare("Real?", draw(seed=0, width=50, height=40)).input_ids.tolist() == ids[1:]


# --------------------------------------------------------------------------------------------------------- native form


@pytest.fixture(scope="module")
def native(checkpoint) -> InternVLPrompt:
    return load_prompt(checkpoint, protocol="native")


@pytest.fixture(scope="module")
def processor(checkpoint) -> InternVLProcessor:
    """transformers' processor with the image processor that resizes with PIL, as upstream did, not torchvision."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    return processor


def native_inputs(processor, question: str, rgb: Image.Image) -> dict[str, Tensor]:
    turn = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    return processor(text=[text], images=[rgb], return_tensors="pt")


@pytest.mark.parametrize("size", [(50, 50), (120, 90), (256, 64), (40, 160), (300, 280)])
def test_native_protocol_equals_the_processor(native, processor, draw, size):
    rgb = draw(seed=3, width=size[0], height=size[1])
    expected = native_inputs(processor, "Is it real?", rgb)
    prepared = native.prepare("<image>\nIs it real?\n", rgb)
    assert prepared.input_ids.tolist() == expected["input_ids"][0].tolist()
    torch.testing.assert_close(
        native.pixel_values(prepared.pixels, torch.float32), expected["pixel_values"], rtol=0, atol=1e-6
    )


def test_native_protocol_follows_the_checkpoints_max_patches(checkpoint, tmp_path, draw):
    folder = copy_with(
        checkpoint, tmp_path / "two", lambda c: c["image_processor"].update(max_patches=2), "processor_config.json"
    )
    rgb = draw(seed=3, width=300, height=280)
    assert len(load_prompt(folder, protocol="native").prepare("Real?", rgb).pixels) == 1
    assert len(load_prompt(folder).prepare("Real?", rgb).pixels) == 5


# ------------------------------------------------------------------------------------------------------------- scores


# Sums are in another order, which float32 shows in its last digits; float64 shows that there is nothing else.
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-6)])


def check(model, prompt: InternVLPrompt, inputs: list[ModelInputs], expected: Tensor, tolerance: float) -> None:
    """Both engines; the packed one comes last, for it changes the model."""
    for scorer_class, engine in ((TransformersScorer, "transformers"), (InternVLScorer, "packed")):
        scorer = scorer_class(model, prompt.for_engine(engine))
        found = scorer.logits(scorer.prompt.collate(inputs))
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=tolerance)


@precisions
def test_upstream_logits_equal_the_plain_forward(checkpoint, prompt, photo_set, dtype, tolerance):
    ours, plain = (load_model(checkpoint, device="cpu", dtype="float32").to(dtype) for _ in range(2))
    prepared, expected = [], []
    for sample in photo_set.samples:
        rgb = load_image(photo_set.path(sample)).rgb
        prepared.append(prompt.prepare(sample.question, rgb))
        tiles = torch.stack([NORMALISE(tile) for tile in upstream_tiles(rgb, TILE)])
        expected.append(plain_logits(plain, prepared[-1].input_ids, tiles, prompt.answer_tokens))
    assert torch.stack(expected).std(dim=0).min() > 1e-3, "all images score alike: nothing would be seen"
    check(ours, prompt, prepared, torch.stack(expected), tolerance)


@precisions
def test_native_logits_equal_the_plain_forward(checkpoint, native, processor, photo_set, dtype, tolerance):
    """Images of one to seven tiles in one batch."""
    ours, plain = (load_model(checkpoint, device="cpu", dtype="float32").to(dtype) for _ in range(2))
    prepared, expected, counts = [], [], set()
    for sample in photo_set.samples:
        rgb = load_image(photo_set.path(sample)).rgb
        inputs = native_inputs(processor, sample.question.replace("<image>", "").strip(), rgb)
        prepared.append(native.prepare(sample.question, rgb))
        tiles = native.pixel_values(prepared[-1].pixels, torch.float32)  # see test_native_protocol_equals_the_processor
        expected.append(plain_logits(plain, inputs["input_ids"][0], tiles, native.answer_tokens))
        counts.add(len(tiles))
    assert counts >= {1, 5, 7}
    check(ours, native, prepared, torch.stack(expected), tolerance)


# ------------------------------------------------------------------------------------------------ broken templates


@pytest.mark.parametrize(
    "template",
    ["{% for", "{{ nothing.at.all }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{% include 'x' %}", "no image"],
)
def test_a_chat_template_that_cannot_be_used_is_one_line(copy_of, template):
    folder = copy_of("internvl3", weights=False)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=r"internvl3: its chat template cannot be used \(.*\)\. Download"):
        InternVLPrompt(folder, "native")
    InternVLPrompt(folder, "upstream")


@pytest.mark.parametrize("kind", ["loops", "power"])
def test_a_chat_template_that_never_ends_is_stopped(copy_of, monkeypatch, kind):
    monkeypatch.setattr("dfbench.models.internvl.TEMPLATE_SECONDS", 1)
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "x" + "{% endfor %}" * 3
    folder = copy_of("internvl3", weights=False)
    (folder / "chat_template.jinja").write_text({"loops": loops, "power": "{{ 9 ** (9 ** 9) }}"}[kind])
    with pytest.raises(InputError, match=r"internvl3: its chat template is not done after 1 seconds\."):
        InternVLPrompt(folder, "native")
