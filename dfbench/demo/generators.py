"""Generators of fake images: small convolutional networks, trained on the spot, whose decoders leave real traces.

Every decoder doubles its resolution with transposed convolutions of kernel 3 and stride 2. Their taps overlap unevenly,
which leaves the checkerboard pattern known from generative networks (Odena, Dumoulin and Olah, "Deconvolution and
Checkerboard Artifacts", Distill 2016, https://distill.pub/2016/deconv-checkerboard), beside the loss of fine detail.
The networks see crops of the training part of the photographs alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from dfbench.demo.photos import IMAGE_SIDE, Regions

NUM_CROPS, STEPS, BATCH = 400, 240, 8
"""Crops that the networks are trained on, training steps of each, crops a step; about 5 seconds each on a CPU core."""

LEARNING_RATE = 4e-3

WIDTH, LATENT_CHANNELS = 24, 8

SAMPLE_NOISE = 0.1
"""Noise on sampled latents, as a fraction of their standard deviation; the sampler's decoder is trained under it."""

PAINTED_DIAMETERS = (0.5, 0.85)
"""Smallest and largest diameter of an in-painted ellipse, as fractions of the image side: 20 to 57 % of the area."""

FEATHER = 2.0
"""Standard deviation in pixels of the blur on an edited region's outline."""


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and hold it to one thread, whose sums always run in the same order; both are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def encoder(halvings: int) -> nn.Sequential:
    """(N, 3, S, S) -> latents (N, LATENT_CHANNELS, S / 2**halvings, S / 2**halvings)."""
    layers: list[nn.Module] = []
    for level in range(halvings):
        layers += [nn.Conv2d(WIDTH if level else 3, WIDTH, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(WIDTH, LATENT_CHANNELS, 1))


def decoder(in_channels: int, doublings: int) -> nn.Sequential:
    """(N, in_channels, S, S) -> colours (N, 3, S * 2**doublings, S * 2**doublings), by transposed convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, WIDTH, 3, padding=1), nn.LeakyReLU(0.2)]
    for level in reversed(range(doublings)):
        layers.append(nn.ConvTranspose2d(WIDTH, WIDTH if level else 3, 3, stride=2, padding=1, output_padding=1))
        if level:
            layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)


class Generators:
    """The four generators, trained when one is made, in some fifteen seconds.

    The photographs' crops come from `seed`; the networks' weights from torch's own generator (see `reproducible`). Each
    method takes and returns uint8 images (N, IMAGE_SIDE, IMAGE_SIDE, 3).
    """

    def __init__(self, train: Regions, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        crops = _to_tensor(train.crops(NUM_CROPS, rng))
        self._autoencoder = nn.Sequential(encoder(2), decoder(LATENT_CHANNELS, 2))
        _fit(self._autoencoder, lambda chosen: (crops[chosen], crops[chosen]))
        self._upsampler = decoder(3, 2)
        _fit(self._upsampler, lambda chosen: (_shrink(crops[chosen]), crops[chosen]))
        self._sampler = nn.Sequential(encoder(2), _Noise(), decoder(LATENT_CHANNELS, 2))
        _fit(self._sampler, lambda chosen: (crops[chosen], crops[chosen]))

    @torch.inference_mode()
    def autoencode(self, crops: np.ndarray) -> np.ndarray:
        """Crops as they come out of the autoencoder."""
        return _to_images(self._autoencoder(_to_tensor(crops)))

    @torch.inference_mode()
    def upsample(self, crops: np.ndarray) -> np.ndarray:
        """Crops shrunk to a quarter of their side and brought back by the super-resolution network."""
        return _to_images(self._upsampler(_shrink(_to_tensor(crops))))

    @torch.inference_mode()
    def inpaint(self, crops: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops in which one elliptic region is painted anew; everything around it stays as it is.

        The autoencoder's decoder paints what the other crop has there, half blended into what was there before.
        """
        encode, decode = self._autoencoder
        mixed = torch.lerp(encode(_to_tensor(crops)), encode(_to_tensor(others)), 0.5)
        painted = _to_images(decode(mixed)).astype(np.float32)
        share = np.stack([cv2.GaussianBlur(random_ellipse(rng), (0, 0), FEATHER) for _ in crops])[..., None]
        return np.rint(share * painted + (1 - share) * crops).astype(np.uint8)

    @torch.inference_mode()
    def sample(self, crops: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """New images: the latents of two crops each, mixed by a smooth random map, with noise, decoded."""
        encode, noise, decode = self._sampler
        first, second = encode(_to_tensor(crops)), encode(_to_tensor(others))
        maps = torch.from_numpy(rng.random((len(crops), 1, 3, 3), dtype=np.float32))
        share = nn.functional.interpolate(maps, size=first.shape[-2:], mode="bicubic").sub(0.5).mul(4).add(0.5)
        mixed = torch.lerp(second, first, share.clamp(0, 1))
        grain = torch.from_numpy(rng.standard_normal(mixed.shape, dtype=np.float32))
        return _to_images(decode(mixed + grain * noise.scale(mixed)))


class _Noise(nn.Module):
    """Adds Gaussian noise to latents, in proportion to each channel's spread."""

    @staticmethod
    def scale(latents: Tensor) -> Tensor:
        return SAMPLE_NOISE * latents.std(dim=(0, 2, 3), keepdim=True).detach()

    def forward(self, latents: Tensor) -> Tensor:
        return latents + torch.randn_like(latents) * self.scale(latents)


def _fit(network: nn.Module, batch: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Train `network` to map inputs to targets by mean absolute error; `batch` picks both by index."""
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        inputs, targets = batch(torch.randint(NUM_CROPS, (BATCH,)))
        loss = nn.functional.l1_loss(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def random_ellipse(rng: np.random.Generator) -> np.ndarray:
    """One filled ellipse inside the image, 1 in it and 0 around: float32 (IMAGE_SIDE, IMAGE_SIDE)."""
    width, height = (rng.uniform(*PAINTED_DIAMETERS, size=2) * IMAGE_SIDE).astype(int)
    left, top = rng.integers(IMAGE_SIDE - width + 1), rng.integers(IMAGE_SIDE - height + 1)
    mask = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    ImageDraw.Draw(mask).ellipse((left, top, left + width - 1, top + height - 1), fill=1)
    return np.asarray(mask, dtype=np.float32)


def _shrink(images: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(images, 4)


def _to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) -> float32 (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _to_images(colours: Tensor) -> np.ndarray:
    """float32 (N, 3, S, S) -> uint8 (N, S, S, 3); [-1, 1] is what uint8 holds, the rest is clipped."""
    return colours.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
