"""The demo's photographs: two parts that never overlap, seeded crops, distortions."""

import numpy as np
import pytest

from dfbench.demo import photos
from dfbench.demo.photos import IMAGE_SIDE, PHOTOGRAPHS, Regions, blur, jpeg, load_regions, noise
from dfbench.errors import InputError


def test_every_photograph_is_on_the_disk_and_large_enough_for_both_parts():
    for part in load_regions():
        assert len(part.pixels) == len(PHOTOGRAPHS)
        for pixels in part.pixels:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            assert min(pixels.shape[:2]) >= IMAGE_SIDE


def test_training_and_test_crops_never_show_the_same_column(monkeypatch):
    # Each column has a gray level of its own (0 to 249), noise in the rows keeps the contrast up.
    columns = np.repeat(np.arange(250, dtype=np.uint8), 2)
    photograph = np.broadcast_to(columns[None, :, None], (200, 500, 3)).copy()
    monkeypatch.setattr(photos, "_load", lambda package, path: photograph)
    train, test = load_regions()
    last_train = max(pixels.max() for pixels in train.pixels)
    first_test = min(pixels.min() for pixels in test.pixels)
    assert last_train < first_test
    # 62 % of 500 columns is 310, whose gray level is 155; 64 % is 320, level 160.
    assert (last_train, first_test) == (154, 160)
    rng = np.random.default_rng(0)
    # Lanczos overshoots beside steep edges only; a ramp of one level a column stays within a level.
    assert train.crops(40, rng).max() <= last_train + 1
    assert test.crops(40, rng).min() >= first_test - 1


def test_crops_are_seeded_mirrored_half_the_time_and_have_contrast():
    ramp = np.broadcast_to(np.linspace(0, 255, 200)[None, :, None], (200, 200, 3)).astype(np.uint8)
    regions = Regions([ramp])
    crops = regions.crops(60, np.random.default_rng(3))
    assert crops.shape == (60, IMAGE_SIDE, IMAGE_SIDE, 3)
    assert np.array_equal(crops, regions.crops(60, np.random.default_rng(3)))
    assert not np.array_equal(crops, regions.crops(60, np.random.default_rng(4)))
    rising = crops[:, 50, -1, 0].astype(int) > crops[:, 50, 0, 0]
    assert 15 <= rising.sum() <= 45
    assert all(crop.mean(axis=2).std() > photos.LEAST_CONTRAST - 1 for crop in crops)


def test_flat_places_are_drawn_again():
    pixels = np.full((150, 600, 3), 128, np.uint8)
    pixels[:, 450:] = np.random.default_rng(0).integers(0, 256, (150, 150, 3))
    crops = Regions([pixels]).crops(20, np.random.default_rng(0))
    assert all(crop.std() > 1 for crop in crops)


def test_crops_are_never_enlarged(monkeypatch):
    sides = []
    resize = photos.Image.Image.resize

    def spy(image, size, *args):
        sides.append(image.size)
        return resize(image, size, *args)

    monkeypatch.setattr(photos.Image.Image, "resize", spy)
    load_regions()[1].crops(50, np.random.default_rng(1))
    assert all(width == height >= IMAGE_SIDE for width, height in sides)
    assert max(sides)[0] > 1.4 * IMAGE_SIDE


def test_distortions_do_what_their_names_say():
    crop = load_regions()[1].crops(1, np.random.default_rng(0))[0]
    coarse, fine = (np.abs(jpeg(crop, quality).astype(float) - crop).mean() for quality in (20, 90))
    assert 0 < fine < coarse

    def roughness(image):
        return np.abs(np.diff(image.astype(float), axis=1)).mean()

    assert roughness(blur(crop, 1.8)) < roughness(blur(crop, 0.7)) < roughness(crop)
    # On mid gray nothing clips: the measured spread is the one asked for, rounding adds 1/12 of a squared level.
    gray = np.full((100, 100, 3), 128, np.uint8)
    noisy = noise(gray, 12.0, np.random.default_rng(0)).astype(float)
    assert noisy.std() == pytest.approx((12.0**2 + 1 / 12) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("package", "path"), [("skimage", "data/no_such.png"), ("no_such_package", "photo.png")])
def test_a_missing_photograph_is_one_line_that_names_package_and_file(monkeypatch, package, path):
    monkeypatch.setattr(photos, "PHOTOGRAPHS", ((package, path),))
    with pytest.raises(InputError, match=f"package {package}: the photograph {path} is not in it") as error:
        load_regions()
    assert "requirements.txt" in str(error.value)
