"""Shared by all tests: their order, and small real checkpoints and data sets that are made once."""

import io
import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from dfbench.data.annotations import QUESTION, Sample
from dfbench.data.sources import CATALOGUE, source_of
from dfbench.models.registry import AGENTS

# Before anything imports torch, as scripts/test.sh does: sums in one order, the same as in programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests send it to this process and to programs; a shell that runs pytest in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of programs start processes, and fuzzers run many cases: they count as slow.

    Slow ones run last in one process, and first where several share the tests, so that none waits long for another.
    """
    for item in items:
        if item.path.parent.name in ("programs", "fuzz"):
            item.add_marker(pytest.mark.slow)
    slow_first = "PYTEST_XDIST_WORKER" in os.environ
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None) != slow_first)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints of the agents' architectures, by the name of their agent; read-only. Several pytest processes
    share one set."""
    from dfbench.demo.tiny_models import make_tiny_models

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "checkpoints"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            make_tiny_models(folder, seed=0)
            (folder / "complete").touch()
    return {agent.name: folder / agent.name for agent in AGENTS.values() if agent.demo}


@pytest.fixture
def jpeg(draw: Callable[..., Image.Image]) -> Callable[..., bytes]:
    """A function: (seed, kind of file) -> bytes of an image, another one for each seed."""

    def encode(seed: int, kind: str = "JPEG") -> bytes:
        buffer = io.BytesIO()
        draw(seed, 40, 30).save(buffer, kind)
        return buffer.getvalue()

    return encode


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An empty folder of downloads, and the image root, which is not there yet."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    return downloads, tmp_path / "root"


@dataclass(frozen=True)
class PhotoSet:
    """A dozen small images and their annotations.

    root: what the image paths start from. messages, conversations: the two released shapes, same rows.
    """

    root: Path
    samples: list[Sample]
    messages: Path
    conversations: Path

    def path(self, sample: Sample) -> Path:
        return self.root / sample.image


@pytest.fixture(scope="session")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> PhotoSet:
    """Images of many sizes, modes and formats, with questions of different lengths and forms; read-only."""
    return make_photo_set(tmp_path_factory.mktemp("photos"))


# Key below DFBench/, width, height, mode.
PHOTOS = (
    ("Flick8k/1.jpg", 120, 90, "RGB"),
    ("Flick8k/2.png", 64, 96, "L"),
    ("koniq10k/3.png", 100, 60, "RGBA"),
    ("CLIVE/4.png", 50, 70, "P"),
    ("CSIQ/5.png", 80, 80, "1"),
    ("LIVE/gblur/6.bmp", 57, 33, "RGB"),
    ("TID2013/7.jpg", 66, 48, "CMYK"),
    ("edit/8.png", 90, 90, "LA"),
    ("Kolors/9.jpg", 256, 64, "RGB"),
    ("NOVA/10.jpg", 40, 160, "RGB"),
    ("PixArt/11.webp", 70, 70, "RGB"),
    ("Janus/12.jpg", 28, 28, "RGB"),
)

QUESTIONS = (
    "<image>" + QUESTION,
    "<image>\n" + QUESTION,
    QUESTION,
    "<image>Real (A) or generated (B)?",
    "<image>这张图片是真实的还是生成的？请回答 A 或 B。",
)


def make_photo_set(root: Path) -> PhotoSet:
    samples = []
    for i, (name, width, height, mode) in enumerate(PHOTOS):
        path = root / "DFBench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(seed=i, width=width, height=height, mode=mode).save(path)
        key = f"DFBench/{name}"
        samples.append(Sample(key, CATALOGUE[source_of(key)].label, QUESTIONS[i % len(QUESTIONS)]))
    return PhotoSet(
        root,
        samples,
        messages=save_rows(root / "img_test.json", samples),
        conversations=save_rows(root / "img_test.jsonl", samples),
    )


def save_rows(path: Path, samples: Iterable[Sample]) -> Path:
    """Write annotations as they are released: `.json` in the messages shape, `.jsonl` with the answer in a list."""
    if path.suffix == ".json":
        rows = json.dumps([messages_row(sample) for sample in samples])
    else:
        rows = "".join(json.dumps(conversations_row(sample)) + "\n" for sample in samples)
    path.write_text(rows, encoding="utf-8")
    return path


def messages_row(sample: Sample) -> dict[str, object]:
    turns = [{"role": "user", "content": sample.question}, {"role": "assistant", "content": sample.label}]
    return {"messages": turns, "images": sample.image}


def conversations_row(sample: Sample) -> dict[str, object]:
    answer = [{"role": "assistant", "content": sample.label}]
    turns = [{"from": "human", "value": sample.question}, {"from": "gpt", "value": answer}]
    return {"image": sample.image, "conversations": turns}


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, Iterable[Sample]], Path]:
    """The function `save_rows`, for tests that make annotations of their own."""
    return save_rows


@pytest.fixture(scope="session")
def draw() -> Callable[..., Image.Image]:
    """The function `draw_image`, for tests that make images of their own."""
    return draw_image


def draw_image(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, like a photograph to a codec; transparent and palette parts where `mode` has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 4), dtype=np.uint8), "RGBA")
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image if mode == "RGBA" else image.convert(mode) if mode == "LA" else image.convert("RGB").convert(mode)


# ------------------------------------------------------------------------------------------------- programs, in-process


@dataclass(frozen=True)
class Finished:
    """How a program ended: its exit status, and what it printed on stdout and stderr."""

    status: int
    out: str
    err: str


Evaluate = Callable[..., Finished]
"""Arguments of an evaluate_logit.py -> how it ended. `agent` names its folder."""


@pytest.fixture
def evaluate_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Evaluate:
    """Runs an evaluate_logit.py in this process, so importing costs nothing, on the device that a user would get."""
    from dfbench import cli
    from dfbench.scoring import program

    def run(*arguments: object, agent: str = "internvl3") -> Finished:
        monkeypatch.setattr("sys.argv", ["evaluate_logit.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            status = cli.run(lambda: program.main(agent, "Score images."))
        except SystemExit as stop:
            status = stop.code
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture
def evaluate(evaluate_anywhere: Evaluate, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """The same on the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return evaluate_anywhere


class FakeModel:
    """Stands for a checkpoint in scoring runs: an image's logits come from its pixels alone, at once.

    logits: (sum of the pixels) -> logits of A and B, to be replaced where a test needs others.
    seen: number of images of each forward pass. loads: how often weights were loaded.
    """

    def __init__(self) -> None:
        self.logits: Callable[[int], tuple[float, float]] = lambda total: (total % 997 / 100, total % 1009 / 100)
        self.seen: list[int] = []
        self.loads = 0


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    """Puts a FakeModel in the place of every checkpoint that `evaluate` loads; `tmp_path` serves as the folder of an
    InternVL.
    """
    import torch
    from safetensors.torch import save_file

    from dfbench.models.base import ModelInputs, Prompt, SequenceSize

    fake = FakeModel()
    text = {"hidden_size": 96, "num_hidden_layers": 2}  # the tiny InternVL3's
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl", "text_config": text}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")

    class FakePrompt(Prompt):
        image_token_id, answer_tokens, prefix, depends_on_size = 0, (1, 2), [], True

        def __init__(self, checkpoint: Path, protocol: str | None = None, *, engine: str = "auto") -> None:
            self.checkpoint, self.engine = checkpoint, "packed" if engine == "auto" else engine

        def text(self, question, image_size):
            return question.replace("<image>", "\0") if "<image>" in question else "\0" + question

        def encode(self, text):
            return list(map(ord, text))

        def prepare(self, question, rgb):
            total = int(np.asarray(rgb).astype(np.int64).sum())
            return ModelInputs(torch.tensor(self.encode(self.text(question, 1))), torch.tensor([total]))

        def sequence_size(self, question, width, height):
            return SequenceSize(len(self.encode(self.text(question, 1))) - len(self.prefix), 1)

        def collate(self, prepared, shape=None):
            return {"pixels": torch.cat([item.pixels for item in prepared])}

        def describe(self):
            return {"protocol": "fake"}

    # What else a Prompt must know, a run that has no real scorer does not ask for.
    FakePrompt.__abstractmethods__ = frozenset()

    class FakeScorer:
        device = torch.device("cpu")

        def __init__(self, prompt, **_):
            self.prompt = prompt
            fake.loads += 1

        def logits(self, batch):
            fake.seen.append(len(batch["pixels"]))
            return torch.tensor([fake.logits(total) for total in batch["pixels"].tolist()], dtype=torch.float32)

    monkeypatch.setattr("dfbench.scoring.run.load_prompt", FakePrompt)
    monkeypatch.setattr("dfbench.scoring.run.load_scorer", FakeScorer)
    return fake
