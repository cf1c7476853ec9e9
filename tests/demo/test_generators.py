"""The demo's generators: what the networks do, and the traces that they leave."""

import numpy as np
import pytest
import torch

from dfbench.demo import generators
from dfbench.demo.generators import Generators, decoder, encoder, random_ellipse, reproducible
from dfbench.demo.photos import blur, load_regions


def test_ellipses_cover_the_stated_share_of_the_image():
    rng = np.random.default_rng(0)
    areas = [random_ellipse(rng).mean() for _ in range(200)]
    low, high = generators.PAINTED_DIAMETERS
    # An ellipse with diameters a and b covers pi a b / 4 of a unit square.
    assert np.pi / 4 * low**2 - 0.01 < min(areas)
    assert max(areas) < np.pi / 4 * high**2 + 0.01


def test_networks_halve_and_double_as_stated():
    latents = encoder(2)(torch.zeros(1, 3, 112, 112))
    assert latents.shape == (1, generators.LATENT_CHANNELS, 28, 28)
    assert decoder(generators.LATENT_CHANNELS, 2)(latents).shape == (1, 3, 112, 112)


def test_reproducible_gives_the_same_numbers_and_leaves_torch_as_it_was():
    threads = torch.get_num_threads()
    with reproducible(3):
        assert torch.get_num_threads() == 1
        first = torch.rand(4)
    torch.rand(1)
    state = torch.get_rng_state()
    with reproducible(3):
        assert torch.equal(first, torch.rand(4))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def grid_peak(pixels: np.ndarray) -> float:
    """How far the horizontal spectrum rises at a period of 2 pixels over its neighbours; 1 where there is no grid."""
    rows = pixels.astype(float).mean(axis=-1)
    power = (np.abs(np.fft.rfft(rows, axis=-1)) ** 2).sum(axis=(0, 1))
    return float(power[-1] / power[-5:-2].mean())


@pytest.mark.slow
def test_trained_generators_resemble_their_input_and_leave_a_decoders_grid():
    train, test = load_regions()
    with reproducible(0):
        made = Generators(train, seed=0)
    originals = test.crops(40, np.random.default_rng(5))
    assert grid_peak(originals) < 1.5
    assert grid_peak(np.stack([blur(image, 1.2) for image in originals])) < 1.5
    for fakes in (made.autoencode(originals), made.upsample(originals)):
        assert np.abs(fakes.astype(float) - originals).mean() < 20
        assert grid_peak(fakes) > 2
    sampled = made.sample(originals, originals[::-1].copy(), np.random.default_rng(0))
    assert np.abs(sampled.astype(float) - originals).mean() > 20
    assert grid_peak(sampled) > 2
