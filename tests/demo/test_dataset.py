"""The demo's images, archives and annotations, as `prepare_dataset.py` and the annotation reader meet them."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dfbench.data.annotations import read_annotations
from dfbench.data.sources import DEMO, FAKE, REAL, Category
from dfbench.data.splits import Subset
from dfbench.demo import dataset, generators
from dfbench.demo.dataset import NUM_IMAGES, count_images, make_demo, make_images, png_file
from dfbench.demo.photos import IMAGE_SIDE
from dfbench.prepare.hub import folder_target
from dfbench.prepare.pipeline import Plan, prepare

COUNTS = {"train": {REAL: 6, FAKE: 7}, "test": {REAL: 3, FAKE: 4}}
# 5 real and 4 fake sources: 5 * 6 + 4 * 7 and 5 * 3 + 4 * 4.
NUM_TRAIN, NUM_TEST = 58, 31


def some_images(seed):
    """Instead of twenty seconds of training: random pixels in the shape of the real thing."""
    rng = np.random.default_rng(seed)

    def pixels(split, source):
        return rng.integers(0, 256, (COUNTS[split][source.label], 16, 16, 3), dtype=np.uint8)

    return {split: {source.name: pixels(split, source) for source in DEMO} for split in COUNTS}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dataset, "make_images", some_images)


@pytest.fixture
def folder(tmp_path):
    assert make_demo(tmp_path / "archives", seed=0)
    return tmp_path / "archives"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_shapes_of_each_file_name_the_same_images_and_labels(folder):
    for stem, count in (("img_train", NUM_TRAIN), ("img_train_shuffled", NUM_TRAIN), ("img_test", NUM_TEST)):
        rows = [
            [(row.image, row.label) for row in read_annotations(folder / f"{stem}{s}")] for s in (".json", ".jsonl")
        ]
        assert rows[0] == rows[1]
        assert len(rows[0]) == count
    in_order, shuffled = (read_annotations(folder / f"{stem}.json") for stem in ("img_train", "img_train_shuffled"))
    assert in_order != shuffled
    assert {row.image for row in in_order} == {row.image for row in shuffled}
    assert not {row.image for row in in_order} & {row.image for row in read_annotations(folder / "img_test.json")}


def test_rows_have_the_quirks_of_the_released_files(folder):
    row = json.loads((folder / "img_test.json").read_text())[0]
    assert row["images"] == "DFBench/demo_photos/000007.png"
    assert row["messages"][0]["content"].startswith("<image>Is this")
    line = json.loads((folder / "img_test.jsonl").read_text().splitlines()[0])
    assert line["image"] == row["images"]
    assert line["conversations"][0]["value"].startswith("<image>\nIs this")
    assert line["conversations"][1]["value"] == [{"role": "assistant", "content": "A"}]


def test_archives_are_laid_out_as_the_released_ones(folder):
    names = {source.name: zipfile.ZipFile(folder / source.archive).namelist() for source in DEMO}
    assert "000001.png" in names["demo_sampler"]
    assert {"captions.txt", "Images/._000001.png", "Images/000001.png"} <= set(names["demo_photos"])
    assert {f"demo_jpeg/quality_{quality}/img1.png" for quality in (20, 40, 60)} <= set(names["demo_jpeg"])
    assert "demo_inpainted/.DS_Store" in names["demo_inpainted"]


def test_the_archives_prepare_to_every_annotated_image(folder, tmp_path):
    report = prepare(
        Plan(
            downloads=folder,
            image_root=tmp_path,
            targets=(folder_target(tmp_path / "annotations"),),
            sources=frozenset(),
            subset=Subset(val_fraction=0.2),
            decode=True,
            verify_only=False,
            num_workers=1,
            quiet=True,
        )
    )
    assert report is not None
    made = some_images(0)
    for split, stems in (("train", ("img_train", "img_val")), ("test", ("img_test",))):
        samples = [sample for stem in stems for sample in read_annotations(tmp_path / "annotations" / f"{stem}.jsonl")]
        assert len(samples) == {"train": NUM_TRAIN, "test": NUM_TEST}[split]
        found = {np.asarray(Image.open(tmp_path / sample.image)).tobytes(): sample for sample in samples}
        for source in DEMO:
            for image in made[split][source.name]:
                assert found[image.tobytes()].source == source.name
                assert found[image.tobytes()].label == source.label


def test_files_do_not_give_the_label_away():
    rng = np.random.default_rng(0)
    busy, flat = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8), np.zeros((112, 112, 3), np.uint8)
    assert len(png_file(busy)) == len(png_file(flat))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_file(busy)))), busy)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    make_demo(tmp_path / "again", seed=0)
    make_demo(tmp_path / "other", seed=1)
    first, again, other = (contents(tmp_path / name) for name in ("archives", "again", "other"))
    assert first == again
    with zipfile.ZipFile(tmp_path / "again" / "demo_photos.zip") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert set(first) == set(other)
    assert all(first[source.archive] != other[source.archive] for source in DEMO)
    assert first["img_train_shuffled.json"] != other["img_train_shuffled.json"]


def test_a_second_run_finds_everything_in_place(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not make_demo(folder, seed=0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("lost", ["demo_blur.zip", "img_test.jsonl", "made_with.json"])
def test_a_lost_file_is_made_again(folder, lost):
    before = contents(folder)
    (folder / lost).unlink()
    assert make_demo(folder, seed=0)
    assert contents(folder) == before


def test_another_seed_or_a_broken_stamp_makes_it_anew(folder):
    assert make_demo(folder, seed=1)
    (folder / "made_with.json").write_text("{")
    assert make_demo(folder, seed=1)
    assert not make_demo(folder, seed=1)


# --------------------------------------------------------------------------------------------------------------- images


@pytest.fixture
def hasty(monkeypatch):
    """Generators after two training steps on a few crops, and a few images of each source."""
    monkeypatch.setattr(generators, "NUM_CROPS", 16)
    monkeypatch.setattr(generators, "STEPS", 2)
    monkeypatch.setattr(dataset, "NUM_IMAGES", {"train": {REAL: 3, FAKE: 4}, "test": {REAL: 3, FAKE: 3}})


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
            count = dataset.NUM_IMAGES[split][source.label]
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
