"""Batches padded to one shape, as compiled code needs them, against single images: on the CPU, in float32."""

import numpy as np
import pytest
import torch

from dfbench.data.annotations import Sample
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.scoring.batching import make_plan, measure_sizes
from dfbench.scoring.loader import Preparation

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")


@pytest.fixture(scope="module")
def squares(tmp_path_factory, draw):
    """Twelve images of one size; the questions of every third are a little shorter."""
    root = tmp_path_factory.mktemp("squares")
    samples = []
    for number in range(12):
        draw(seed=number, width=84, height=84).save(root / f"{number}.png")
        samples.append(Sample(f"{number}.png", "A", "<image>Real?" if number % 3 else "<image>Real or not?"))
    return root, samples


def logits(scorer, root, samples, *, batch_size, pieces=1, padded=True) -> np.ndarray:
    sizes = measure_sizes(samples, root, scorer.prompt)
    plan = make_plan(samples, sizes, token_budget=10**6, batch_size=batch_size)
    shape = plan.shape if padded else None
    batches = Preparation(plan.batches, root, scorer.prompt, shape=shape, pieces=pieces)
    packs = [pack for index in range(len(batches)) for pack in batches[index].packs]
    return torch.cat([scorer.logits(pack.inputs) for pack in packs]).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"batch_size": 12, "pieces": 4}])
@pytest.mark.parametrize("kind", ["mixed", "squares"])
@pytest.mark.parametrize("agent", AGENTS)
def test_padded_batches_equal_single_images(checkpoints, photo_set, squares, agent, kind, options):
    root, samples = squares if kind == "squares" else (photo_set.root, photo_set.samples)
    prompt = load_prompt(checkpoints[agent])
    prompt.share_prefix({sample.question for sample in samples})
    scorer = load_scorer(prompt, device="cpu", dtype="float32")
    expected = logits(scorer, root, samples, batch_size=1, padded=False)
    np.testing.assert_allclose(logits(scorer, root, samples, **options), expected, atol=2e-5)


@pytest.mark.parametrize("agent", AGENTS)
def test_uniform_batches_equal_single_images(checkpoints, squares, agent):
    """Twelve prompts of one length in batches of five: the last batch is padded with whole prompts."""
    root, samples = squares
    samples = [Sample(sample.image, "A", "<image>Real?") for sample in samples]
    scorer = load_scorer(load_prompt(checkpoints[agent]), device="cpu", dtype="float32")
    expected = logits(scorer, root, samples, batch_size=1, padded=False)
    np.testing.assert_allclose(logits(scorer, root, samples, batch_size=5), expected, atol=2e-5)
