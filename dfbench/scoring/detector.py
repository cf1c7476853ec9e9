"""A detector held in memory, for images that no annotation file names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfbench.data.annotations import QUESTION
from dfbench.data.images import load_image
from dfbench.models.base import Scorer
from dfbench.models.checkpoints import find_weights
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.predictions.probabilities import probabilities


@dataclass(frozen=True)
class LoadedDetector:
    """One or more agents whose weights are in memory. Several are fused as MoA-DF: the mean of their probabilities.

    agents: what computes the logits of each. question: put to them about every image.
    batch_size: images that go through a model at once.
    """

    agents: tuple[Scorer, ...]
    question: str
    batch_size: int

    def predict(self, images: Sequence[Path | str | Image.Image] | Path | str | Image.Image) -> np.ndarray:
        """P(fake) of one image or of several, files or Pillow images: (N,) float32 in [0, 1].

        Raises ImageError for a file that cannot be decoded, and for an image of proportions that a model cannot take.
        """
        return self.predict_by_agent(images).mean(axis=1)

    def predict_by_agent(self, images: Sequence[Path | str | Image.Image] | Path | str | Image.Image) -> np.ndarray:
        """As `predict`, of each agent: (N, K) float32."""
        images = [images] if isinstance(images, Path | str | Image.Image) else images
        chunks = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        return np.concatenate([np.empty((0, len(self.agents)), np.float32), *map(self._predict_chunk, chunks)])

    def _predict_chunk(self, images: Sequence[Path | str | Image.Image]) -> np.ndarray:
        pixels = [_rgb(image) for image in images]
        return np.stack([self._predict_fake(scorer, pixels) for scorer in self.agents], axis=1)

    def _predict_fake(self, scorer: Scorer, pixels: Sequence[Image.Image]) -> np.ndarray:
        batch = scorer.prompt.collate([scorer.prompt.prepare(self.question, rgb) for rgb in pixels])
        logits = scorer.logits({name: value.to(scorer.device) for name, value in batch.items()})
        return probabilities(logits.cpu().numpy())[:, 1]


def load_detector(
    models: Sequence[Path | str] | Path | str,
    *,
    adapter: Path | str | None = None,
    question: str = QUESTION,
    device: str | None = None,
    dtype: str | None = None,
    engine: str = "auto",
    batch_size: int = 8,
) -> LoadedDetector:
    """Load one agent, or several to be fused as MoA-DF.

    models: a checkpoint folder, or one of each agent. adapter: LoRA adapter of a single one, kept unmerged.
    question: ask what the agents were trained on; the default is DFBench's.
    device, dtype: None for a GPU in bfloat16 where there is one, or else the CPU in float32. engine: see ScoringConfig.
    Raises InputError for a folder that is no checkpoint of a known family.
    """
    folders = [models] if isinstance(models, Path | str) else models
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    agents = []
    for folder in folders:
        checkpoint, lora = find_weights(Path(folder), Path(adapter) if adapter else None, Path(folder))
        prompt = load_prompt(checkpoint, engine=engine)
        prompt.share_prefix([question])
        agents.append(load_scorer(prompt, device=device, dtype=dtype, adapter=lora))
    return LoadedDetector(tuple(agents), question, batch_size)


def _rgb(image: Path | str | Image.Image) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else load_image(Path(image)).rgb
