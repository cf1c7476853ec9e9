"""The demo's images: distortions of photographs and the stand-in generators."""

import numpy as np
import pytest
import torch

from dfbench.data.sources import DEMO, FAKE, REAL, Category
from dfbench.demo import generators, images
from dfbench.demo.generators import StandIns, decoder, encoder, random_ellipse, reproducible
from dfbench.demo.images import NUM_IMAGES, blur, count_images, jpeg, make_images, noise
from dfbench.demo.photos import IMAGE_SIDE, load_regions


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return load_regions()[1].crops(8, np.random.default_rng(0))


@pytest.fixture
def hasty(monkeypatch):
    """Stand-ins after two training steps on a few crops, and a few images of each source."""
    monkeypatch.setattr(generators, "NUM_CROPS", 16)
    monkeypatch.setattr(generators, "STEPS", 2)
    monkeypatch.setattr(images, "NUM_IMAGES", {"train": {REAL: 3, FAKE: 4}, "test": {REAL: 3, FAKE: 3}})


def test_the_demo_is_large_enough_balanced_and_covers_all_four_categories():
    assert count_images("train") >= 400
    assert count_images("test") >= 200
    for split in NUM_IMAGES:
        real = sum(NUM_IMAGES[split][source.label] for source in DEMO if source.label == REAL)
        assert real == count_images(split) / 2
    categories = {source.category for source in DEMO}
    assert len(DEMO) >= 8
    assert categories == set(Category) - {Category.OTHER_REAL, Category.OTHER_FAKE}


def test_every_source_is_made_and_a_seed_gives_the_same_pixels(hasty):
    first = make_images(0)
    torch.rand(1)  # what ran before must not matter
    again, other = make_images(0), make_images(1)
    for split in ("train", "test"):
        assert set(first[split]) == {source.name for source in DEMO}
        for source in DEMO:
            pixels = first[split][source.name]
            assert pixels.dtype == np.uint8
            count = images.NUM_IMAGES[split][source.label]
            assert pixels.shape == (count, IMAGE_SIDE, IMAGE_SIDE, 3)
            assert np.array_equal(pixels, again[split][source.name])
            assert not np.array_equal(pixels, other[split][source.name])


def test_originals_are_what_the_edited_images_were_before(hasty):
    made = make_images(0)["train"]
    originals, edited = made["demo_originals"], made["demo_inpainted"][: len(made["demo_originals"])]
    same = (originals == edited).all(axis=-1).mean(axis=(1, 2))
    # The painted ellipse and its soft edge cover at most about 65 % of an image, at least 20 %.
    assert (same > 0.3).all()
    assert (same < 0.85).all()


def test_distortions_do_what_their_names_say(crops):
    crop = crops[0]
    coarse, fine = (np.abs(jpeg(crop, quality).astype(float) - crop).mean() for quality in (20, 90))
    assert 0 < fine < coarse

    def roughness(image):
        return np.abs(np.diff(image.astype(float), axis=1)).mean()

    assert roughness(blur(crop, 1.8)) < roughness(blur(crop, 0.7)) < roughness(crop)
    # On mid gray nothing clips: the measured spread is the one asked for, rounding adds 1/12 of a squared level.
    gray = np.full((100, 100, 3), 128, np.uint8)
    noisy = noise(gray, 12.0, np.random.default_rng(0)).astype(float)
    assert noisy.std() == pytest.approx((12.0**2 + 1 / 12) ** 0.5, rel=0.02)


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
@pytest.mark.slow
def test_trained_stand_ins_resemble_their_input_and_leave_a_decoders_grid():
    train, test = load_regions()
    with reproducible(0):
        stand_ins = StandIns(train, seed=0)
    originals = test.crops(40, np.random.default_rng(5))
    assert grid_peak(originals) < 1.5
    assert grid_peak(np.stack([blur(image, 1.2) for image in originals])) < 1.5
    for fakes in (stand_ins.autoencode(originals), stand_ins.upsample(originals)):
        assert np.abs(fakes.astype(float) - originals).mean() < 20
        assert grid_peak(fakes) > 2
    sampled = stand_ins.sample(originals, originals[::-1].copy(), np.random.default_rng(0))
    assert np.abs(sampled.astype(float) - originals).mean() > 20
    assert grid_peak(sampled) > 2
