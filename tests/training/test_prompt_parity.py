"""Training sees what scoring sees: ms-swift's templates, fed as `swift sft` feeds them, against Prompt.prepare."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageFile

from dfbench.data.annotations import Sample, write_annotations
from dfbench.data.images import load_image
from dfbench.models.base import Prompt
from dfbench.models.qwen2_5_vl import MAX_PIXELS, MIN_PIXELS, SYSTEM
from dfbench.models.registry import AGENTS, FAMILIES, Family, load_prompt

pytestmark = pytest.mark.slow

QUESTION = "Is this a real image or a generated image? A: 'real' or B: 'generated'. Just answer with A or B."
QUESTIONS = (
    "<image>" + QUESTION,
    "<image>\n" + QUESTION,
    QUESTION,
    "<image>" + QUESTION + "  ",
    "<image>\n" + QUESTION + "\n",
    "  " + QUESTION,
    "Look at this: <image>\n" + QUESTION,
    QUESTION + "\n<image>",
    "<image>这张图片是真实的还是生成的？请回答 A 或 B。",
    "这张图片是真实的还是生成的？",
    "<image>Real?\n\nA: yes\nB: no\n\n",
)


@pytest.fixture(scope="module")
def swift_environment(tmp_path_factory):
    """What train.sh sets before ms-swift starts; no hub, no caches outside the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIN_PIXELS", str(MIN_PIXELS))
        patch.setenv("MAX_PIXELS", str(MAX_PIXELS))
        patch.setenv("USE_HF", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MODELSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        imported = "dfbench.training.swift_plugin" in sys.modules
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", imported)  # the plug-in turns it on when it is imported
        pytest.importorskip("swift", reason="training needs ms-swift")
        import dfbench.training.swift_plugin  # noqa: F401 - registers the template

        yield


@pytest.fixture(params=list(AGENTS))
def agent(request) -> str:
    return request.param


@pytest.fixture
def prompt(checkpoints, agent) -> Prompt:
    return load_prompt(checkpoints[agent])


@pytest.fixture
def training_rows(swift_environment, checkpoints, agent, tmp_path) -> Callable[[list[Sample], Path], Any]:
    """A function: samples and their image root -> the data set that ms-swift's trainer reads, rows encoded."""
    from swift.dataset import load_dataset
    from swift.dataset.utils import LazyLLMDataset
    from swift.model import get_processor
    from swift.template import get_template

    family = FAMILIES[AGENTS[agent].family]
    processor = get_processor(str(checkpoints[agent]), model_type=family.name, torch_dtype=torch.float32)
    system = SYSTEM if agent == "qwen2.5" else None
    template = get_template(processor, system, max_length=4096, template_type=family.template)
    template.set_mode("train")

    def load(samples: list[Sample], root: Path) -> LazyLLMDataset:
        write_annotations(samples, tmp_path / "train.jsonl", image_root=root)
        rows, _ = load_dataset([str(tmp_path / "train.jsonl")], strict=True, shuffle=False, load_from_cache_file=False)
        return LazyLLMDataset(rows, template.encode, strict=True)

    return load


def assert_same(row: dict[str, Any], prompt: Prompt, sample: Sample, root: Path) -> None:
    prepared = prompt.prepare(sample.question, load_image(root / sample.image).rgb)
    before = prepared.input_ids.tolist()
    assert row["input_ids"][: len(before)] == before, prompt.tokenizer.decode(row["input_ids"][: len(before) + 3])
    assert torch.equal(row["pixel_values"], prompt.pixel_values(prepared.pixels, torch.float32))
    # The loss is on the letter, the end of the turn, and (Qwen) the line break that ms-swift puts after it.
    after = row["input_ids"][len(before) :]
    ending = (
        "<|im_end|>\n"
        if row["input_ids"][0] == prompt.tokenizer.convert_tokens_to_ids("<|im_start|>")
        else "<|im_end|>"
    )
    assert prompt.tokenizer.decode(after) == sample.label + ending
    assert after[0] == prompt.answer_tokens["AB".index(sample.label)]
    assert row["labels"] == [-100] * len(before) + after


def test_every_mode_and_size_of_image(training_rows, prompt, photo_set):
    """Gray, with alpha, with a palette, 16-bit, CMYK; JPEG, PNG, BMP, WebP; small, long, tall."""
    rows = training_rows(photo_set.samples, photo_set.root)
    for row, sample in zip(rows, photo_set.samples, strict=True):
        assert_same(row, prompt, sample, photo_set.root)


def test_every_form_of_question(training_rows, prompt, photo_set):
    first = photo_set.samples[0]
    samples = [Sample(first.image, "AB"[i % 2], question) for i, question in enumerate(QUESTIONS)]
    for row, sample in zip(training_rows(samples, photo_set.root), samples, strict=True):
        assert_same(row, prompt, sample, photo_set.root)


def test_images_beyond_the_bounds_on_pixels(training_rows, prompt, tmp_path, draw):
    """1,600x1,200 is above Qwen2.5-VL's upper bound, 20x20 below the lower one."""
    samples = []
    for i, (width, height) in enumerate([(1600, 1200), (20, 20), (1024, 1024), (700, 90)]):
        draw(seed=i, width=width, height=height).save(tmp_path / f"{i}.png")
        samples.append(Sample(f"{i}.png", "A", "<image>Real?"))
    for row, sample in zip(training_rows(samples, tmp_path), samples, strict=True):
        assert_same(row, prompt, sample, tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_images_are_trained_on_as_they_are_scored(training_rows, prompt, tmp_path, draw, suffix):
    path = tmp_path / f"cut.{suffix}"
    draw(seed=0, width=120, height=90).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    assert load_image(path).truncated
    sample = Sample(path.name, "B", "<image>Real?")
    assert_same(training_rows([sample], tmp_path)[0], prompt, sample, tmp_path)


def test_a_turned_photograph_stays_as_it_is_stored(training_rows, prompt, tmp_path, draw):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    draw(seed=0, width=120, height=60).save(tmp_path / "turned.jpg", exif=exif)
    sample = Sample("turned.jpg", "B", "<image>Real?")
    assert_same(training_rows([sample], tmp_path)[0], prompt, sample, tmp_path)


@pytest.mark.parametrize("damage", ["missing", "no image", "empty"])
def test_an_image_that_cannot_be_used_stops_training(training_rows, photo_set, tmp_path, draw, damage):
    """Without --strict true, ms-swift would put another row in its place."""
    draw(seed=0, width=64, height=64).save(tmp_path / "good.png")
    samples = [Sample("good.png", "A", "<image>Real?"), Sample("bad.png", "B", "<image>Real?")]
    (tmp_path / "bad.png").write_bytes(b"" if damage == "empty" else b"no image")
    rows = training_rows(samples, tmp_path)
    if damage == "missing":
        (tmp_path / "bad.png").unlink()
    assert rows[0]["input_ids"]
    with pytest.raises((OSError, ValueError)):
        rows[1]


def test_a_family_gets_its_template_by_its_record(swift_environment, monkeypatch):
    from swift.template import TEMPLATE_MAPPING

    from dfbench.training import swift_plugin

    monkeypatch.setitem(FAMILIES, "internvl", replace(FAMILIES["internvl"], template="internvl_hf"))
    monkeypatch.setitem(FAMILIES, "new", Family("new", ("new",), prompt="-", scorer="-", template="dfbench_new"))
    runpy.run_path(swift_plugin.__file__)
    assert TEMPLATE_MAPPING.pop("dfbench_new").template_cls.__name__ == "PromptTemplate"
