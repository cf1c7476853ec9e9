"""Clean annotations out of released ones: which rows, where, in which shape and order."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from builders import agent_targets

from dfbench.data.annotations import Sample, read_annotations
from dfbench.data.splits import Subset
from dfbench.errors import InputError
from dfbench.prepare.hub import folder_target
from dfbench.prepare.pipeline import Plan, prepare
from dfbench.prepare.reasons import Reason
from dfbench.prepare.report import check_complete, describe

MESSAGES_QUESTION = "<image>Is this image real? A or B."
CONVERSATIONS_QUESTION = "Is this image real (A) or not (B)?"


class Small:
    """Forty images of two sources in archives, and both shapes of annotations, with wordings that differ."""

    def __init__(self, root: Path, encode, write_rows) -> None:
        self.root, self.downloads, self._write_rows = root, root / "downloads", write_rows
        self.downloads.mkdir()
        self.images = [f"DFBench/Kolors/{i:06d}.jpg" for i in range(30)] + [f"DFBench/CLIVE/{i}.bmp" for i in range(10)]
        # Every fourth image is for testing; the order is mixed, as in the shuffled release.
        mixed = sorted(self.images, key=lambda image: image[::-1])
        self.test, self.train = mixed[::4], [image for i, image in enumerate(mixed) if i % 4]
        self.zip("Kolors_000001-040000.zip", {f"{i:06d}.jpg": encode(i) for i in range(30)})
        self.zip("CLIVE.zip", {f"Images/{i}.bmp": encode(i) for i in range(10)})

    def zip(self, name, members):
        with zipfile.ZipFile(self.downloads / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    def release(self, folder=None, suffixes=(".json", ".jsonl"), train=None, test=None):
        """Write released annotations; both shapes hold the same rows."""
        folder = folder or self.downloads
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in suffixes:
            question = MESSAGES_QUESTION if suffix == ".json" else CONVERSATIONS_QUESTION
            for stem, images in (("img_train_shuffled", train or self.train), ("img_test", test or self.test)):
                samples = [Sample(image, "B" if "Kolors" in image else "A", question) for image in images]
                self._write_rows(folder / f"{stem}{suffix}", samples)

    def prepare(self, targets=None, **options):
        targets = targets or (folder_target(self.root / "clean"),)
        return prepare(Plan(self.downloads, self.root / "out", tuple(targets), **options))

    def clean(self, split):
        path = self.root / "clean" / f"img_{split}.jsonl"
        return [sample.image for sample in read_annotations(path)] if path.exists() else None


@pytest.fixture
def small(tmp_path, draw, write_rows):
    def encode(seed):
        buffer = io.BytesIO()
        draw(seed, 24, 16).save(buffer, "JPEG")
        return buffer.getvalue()

    return Small(tmp_path, encode, write_rows)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------- rows and order


def test_rows_keep_the_released_order(small):
    small.release()
    report = small.prepare()
    assert small.clean("test") == small.test
    validation = small.clean("val")
    assert {image.split("/")[1] for image in validation} == {"Kolors", "CLIVE"}
    assert small.clean("train") == [image for image in small.train if image not in validation]
    assert validation == [image for image in small.train if image in set(validation)]
    assert all((small.root / "out" / image).is_file() for image in small.images)
    assert [file["rows"] for file in report.written] == [len(small.train) - 2, 2, len(small.test)]


def test_rows_without_an_image_are_left_out_and_listed(small):
    train = [*small.train, "DFBench/Kolors/999999.jpg", small.test[0], small.train[0], "DFBench/Kolors/._000001.jpg"]
    small.release(train=train)
    report = small.prepare()
    assert set(small.clean("train") + small.clean("val")) == set(small.train)
    lines = [(small.root / "clean" / f"img_{split}.jsonl").read_text().splitlines() for split in ("train", "val")]
    assert len(lines[0]) + len(lines[1]) == len(small.train)
    (summary,) = (summary for summary in report.releases[0] if summary.split == "train")
    assert [(row.row - len(small.train), row.reason) for row in summary.left_out] == [
        (1, Reason.ABSENT),
        (2, Reason.IN_BOTH),
        (3, Reason.REPEATED),
        (4, Reason.JUNK),
    ]


def test_undecodable_images_are_left_out(small):
    small.zip("CLIVE.zip", {f"Images/{i}.bmp": b"no image" for i in range(10)})
    small.release()
    report = small.prepare()
    assert not any("CLIVE" in image for image in small.clean("train") + small.clean("test"))
    assert {row.reason for summary in report.releases[0] for row in summary.left_out} == {Reason.UNDECODABLE}


def test_only_the_sources_asked_for(small):
    small.release()
    small.prepare(sources=frozenset(["CLIVE"]))
    assert small.clean("train") + small.clean("val") + small.clean("test")
    assert all("CLIVE" in image for split in ("train", "val", "test") for image in small.clean(split))
    assert not (small.root / "out/DFBench/Kolors").exists()


def test_a_subset_extracts_what_it_needs_only(small):
    small.release()
    report = small.prepare(subset=Subset(limit_per_source=2, val_fraction=0.5))
    chosen = [image for split in ("train", "val", "test") for image in small.clean(split)]
    assert len(chosen) == 8
    on_disk = {str(path.relative_to(small.root / "out")) for path in (small.root / "out").rglob("*.*")}
    assert on_disk == set(chosen)
    assert report.num_not_chosen == 40 - 8


def test_a_subset_is_chosen_among_images_that_are_there(small):
    small.release(test=[*(f"DFBench/Kolors/9{i:05d}.jpg" for i in range(50)), *small.test])
    small.prepare(subset=Subset(limit_per_source=3))
    assert len([image for image in small.clean("test") if "Kolors" in image]) == 3


# ----------------------------------------------------------------------------------------------------- files and shapes


def test_model_folders_each_get_their_own_wording_and_shape(small):
    small.release()
    small.prepare(agent_targets(small.root))
    test = {
        path: read_annotations(small.root / path)
        for path in ("qwen2.5/datasets/img_test.json", "internvl3/data/img_test.jsonl")
    }
    assert {sample.question for sample in test["qwen2.5/datasets/img_test.json"]} == {MESSAGES_QUESTION}
    assert {sample.question for sample in test["internvl3/data/img_test.jsonl"]} == {CONVERSATIONS_QUESTION}
    rows = json.loads((small.root / "qwen2.5/datasets/img_train_shuffled.json").read_text())
    assert all(isinstance(turn["content"], str) for row in rows for turn in row["messages"])
    assert all(isinstance(row["images"], list) for row in rows)
    for name in ("img_train_shuffled.jsonl", "img_val.jsonl", "img_test.jsonl"):
        contents = [(small.root / folder / "data" / name).read_bytes() for folder in ("internvl2.5", "internvl3")]
        assert contents[0] == contents[1]
    assert tree(small.downloads).keys() == {
        *("CLIVE.zip", "Kolors_000001-040000.zip", "img_test.json", "img_test.jsonl"),
        *("img_train_shuffled.json", "img_train_shuffled.jsonl"),
    }


def test_rows_of_the_other_shape_leave_the_place_of_the_image_to_the_model(small):
    small.release(suffixes=[".json"])
    small.prepare(agent_targets(small.root))
    (question,) = {sample.question for sample in read_annotations(small.root / "internvl2.5/data/img_test.jsonl")}
    assert question == MESSAGES_QUESTION.removeprefix("<image>")
    (question,) = {sample.question for sample in read_annotations(small.root / "qwen2.5/datasets/img_test.json")}
    assert question == MESSAGES_QUESTION


def test_test_rows_alone_are_enough(small):
    small.release()
    for path in small.downloads.glob("img_train*"):
        path.unlink()
    small.prepare()
    assert small.clean("test") == small.test
    assert small.clean("train") is small.clean("val") is None


def test_an_old_validation_file_does_not_outlive_its_split(small):
    """Its rows are training rows now; a training shell that found it would validate on them."""
    small.release()
    small.prepare()
    assert small.clean("val")
    small.prepare(subset=Subset(val_fraction=0))
    assert small.clean("val") is None
    assert small.clean("train") == small.train


def test_a_run_without_usable_rows_leaves_earlier_clean_files_alone(small):
    small.release()
    small.prepare()
    before = tree(small.root / "clean")
    for path in small.downloads.glob("*.zip"):
        path.rename(path.with_suffix(".elsewhere"))
    report = prepare(Plan(small.downloads, small.root / "other", (folder_target(small.root / "clean"),)))
    assert report.written == []
    assert tree(small.root / "clean") == before


@pytest.mark.parametrize("empty", ["train", "test"])
def test_without_training_or_test_rows_nothing_is_written(small, empty):
    """Training rows of one selection beside test rows of another are worse than a failure."""
    small.release()
    small.prepare()
    before = tree(small.root / "clean")
    junk = ["DFBench/Kolors/._1.jpg", "DFBench/Kolors/._1.jpg"]
    small.release(train=small.train[:5] if empty == "test" else junk, test=junk if empty == "test" else small.test[:5])
    report = small.prepare()
    assert report.written == []
    assert tree(small.root / "clean") == before
    name = {"train": "img_train_shuffled.jsonl", "test": "img_test.jsonl"}[empty]
    assert f"{name}: no row of use, so nothing is written; clean files of an earlier run are left" in describe(report)
    with pytest.raises(InputError, match=rf"{name}: no row of use among 2 \(2 junk\)\. Download the annotations again"):
        check_complete(report, allowed_absent=0, where="list")


def test_a_source_without_test_rows_is_a_failure(small):
    small.release(test=[image for image in small.test if "CLIVE" not in image])
    report = small.prepare(sources=frozenset(["CLIVE"]))
    assert report.written == []
    with pytest.raises(InputError, match=r"img_test.jsonl: no row of use among 0\. .* or name other --sources\."):
        check_complete(report, allowed_absent=0, where="list")


def test_released_files_in_the_way_are_kept_and_read_again(small):
    """The seed's commands download annotations straight into the model folders."""
    small.release(small.root / "qwen2.5" / "datasets", [".json"])
    small.release(small.root / "internvl2.5" / "data", [".jsonl"])
    originals = tree(small.root / "qwen2.5" / "datasets")
    small.prepare(agent_targets(small.root))
    first = {folder: tree(small.root / folder) for folder in ("qwen2.5", "internvl2.5", "internvl3")}
    assert first["qwen2.5"]["datasets/img_test.released.json"] == originals["img_test.json"]
    assert first["qwen2.5"]["datasets/img_train_shuffled.released.json"] == originals["img_train_shuffled.json"]
    assert len(read_annotations(small.root / "qwen2.5/datasets/img_test.json")) == len(small.test)
    assert set(first["internvl2.5"]) - set(first["internvl3"]) == {
        "data/img_test.released.jsonl",
        "data/img_train_shuffled.released.jsonl",
    }
    small.prepare(agent_targets(small.root))
    assert {folder: tree(small.root / folder) for folder in first} == first


def test_the_folder_of_the_downloads_may_receive_the_clean_files(small):
    small.release()
    targets = (folder_target(small.downloads),)
    small.prepare(targets)
    first = tree(small.downloads)
    assert "img_test.released.jsonl" in first
    small.prepare(targets)
    assert tree(small.downloads) == first


def test_no_released_file_is_moved_where_nothing_can_be_written(small):
    small.release(small.root / "qwen2.5" / "datasets", [".json"])
    for path in small.downloads.glob("*.zip"):
        path.unlink()
    before = tree(small.root / "qwen2.5")
    small.prepare(agent_targets(small.root))
    assert tree(small.root / "qwen2.5") == before


def test_verifying_changes_nothing(small):
    small.release(small.root / "qwen2.5" / "datasets", [".json"])
    before = tree(small.root)
    report = small.prepare(agent_targets(small.root), verify_only=True)
    assert tree(small.root) == before
    assert {row.reason for summary in report.releases[0] for row in summary.left_out} == {Reason.NOT_EXTRACTED}
    small.prepare(agent_targets(small.root))
    (small.root / "out" / small.test[0]).write_bytes(b"half")
    before = tree(small.root)
    report = small.prepare(agent_targets(small.root), verify_only=True)
    assert [row.image for summary in report.releases[0] for row in summary.left_out] == [small.test[0]]
    assert tree(small.root) == before


def test_a_second_run_writes_no_image_again(small):
    small.release()
    small.prepare()
    times = {path: path.stat().st_mtime_ns for path in (small.root / "out").rglob("*.*")}
    missing = small.root / "out" / small.train[3]
    missing.unlink()
    small.prepare()
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {missing}


@pytest.mark.parametrize("decode", [False, True])
def test_damaged_images_of_the_right_size_are_repaired(small, decode):
    small.release()
    small.prepare()
    before = tree(small.root)
    (small.root / "out" / small.train[3]).write_bytes(bytes((small.root / "out" / small.train[3]).stat().st_size))
    report = small.prepare(verify_only=True, decode=decode)
    assert [row.reason for summary in report.releases[0] for row in summary.left_out] == [Reason.UNDECODABLE]
    report = small.prepare(decode=decode)
    assert [row for summary in report.releases[0] for row in summary.left_out] == []
    assert tree(small.root) == before


def test_an_image_without_its_end_is_repaired_where_every_pixel_is_looked_at(small):
    small.release()
    small.prepare()
    before, path = tree(small.root), small.root / "out" / small.train[3]
    path.write_bytes(path.read_bytes()[:-150] + bytes(150))
    assert small.prepare(verify_only=True, decode=True).truncated == [small.train[3]]
    assert small.prepare(decode=True).truncated == []
    assert tree(small.root) == before


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_no_annotations(small):
    with pytest.raises(InputError, match="no released annotations"):
        small.prepare()


def test_a_source_that_no_row_has(small):
    small.release()
    with pytest.raises(InputError, match=r"no row of Kolours; there is CLIVE, Kolors\. "):
        small.prepare(sources=frozenset(["CLIVE", "Kolours"]))


def test_broken_annotations_leave_everything_as_it_was(small):
    small.release()
    path = small.downloads / "img_train_shuffled.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    before = tree(small.root)
    with pytest.raises(InputError, match=r"img_train_shuffled.jsonl, row 30: broken JSON"):
        small.prepare()
    assert tree(small.root) == before
