"""The measuring behind scripts/benchmark_scoring.py: images, answers under many heads, deviations."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dfbench.benchmarks import scoring as benchmark
from dfbench.benchmarks import workload
from dfbench.models.registry import AGENTS


def test_images_are_made_once_and_always_the_same(tmp_path: Path) -> None:
    samples = workload.write_images(tmp_path / "a", 30, mixed=True)
    again = workload.write_images(tmp_path / "b", 30, mixed=True)
    assert samples == again
    assert len({sample.image for sample in samples}) == 30
    for sample in samples:
        assert (tmp_path / "a" / sample.image).read_bytes() == (tmp_path / "b" / sample.image).read_bytes()
    written = (tmp_path / "a" / samples[0].image).stat().st_mtime_ns
    workload.write_images(tmp_path / "a", 30, mixed=True)
    assert (tmp_path / "a" / samples[0].image).stat().st_mtime_ns == written


def test_mixed_images_have_the_sizes_of_the_dataset(tmp_path: Path) -> None:
    sizes = set()
    for sample in workload.write_images(tmp_path, 40, mixed=True):
        with Image.open(tmp_path / sample.image) as image:
            sizes.add(image.size)
    assert len(sizes) > 1
    assert sizes <= {(width, height) for width, height, _ in workload.MIXED_SIZES}


def test_heads_spread_the_answers() -> None:
    torch.manual_seed(0)
    states = 5 + torch.randn(24, 300)  # all alike, as random weights make them
    heads = benchmark.spread_heads(states, torch.float32)
    answers = benchmark.answers(states, heads)
    assert answers.shape == (benchmark.NUM_HEADS, 24)
    # The logits' difference has standard deviation 1.5 and, its common part taken away, mean 0.
    difference = torch.logit(answers)
    assert torch.allclose(difference.std(dim=1), torch.full((benchmark.NUM_HEADS,), 1.5), atol=1e-3)
    assert difference.mean(dim=1).abs().max() < 1e-3


def test_answers_are_the_softmax_of_two_rows() -> None:
    states = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    heads = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # Logits (1, 2) and (0, -1): P(A) = 1 / (1 + e) and 1 / (1 + 1/e).
    assert benchmark.answers(states, heads)[0].tolist() == pytest.approx([0.26894142, 0.73105858])


def test_deviation_is_the_largest_and_the_mean() -> None:
    found = benchmark.deviation(torch.tensor([[0.5, 0.25]]), torch.tensor([[0.25, 0.125]]))
    assert (found.largest, found.mean) == (0.25, 0.1875)
    assert str(found) == "2.5e-01 / 1.9e-01"


def test_every_agent_has_its_real_shape(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    assert workload.REAL_SHAPES.keys() == AGENTS.keys()
    # Parameters of the released checkpoints: Qwen2.5-VL-7B, InternVL2_5-8B, InternVL3-9B.
    for name, billions in {"qwen2.5": 8.29, "internvl2.5": 8.08, "internvl3": 9.14}.items():
        folder = shutil.copytree(checkpoints[name], tmp_path / name)
        workload.give_real_shape(name, folder)
        model = workload.random_model(folder, "meta", torch.bfloat16)
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-3)
