"""Which images a folder or an annotation file stands for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfbench.data import discovery
from dfbench.data.discovery import annotated_images, choose_images, find_images, printable
from dfbench.data.images import IMAGE_SUFFIXES
from dfbench.errors import InputError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_sources_are_the_folders_of_dfbench(tmp_path: Path) -> None:
    touch(tmp_path, "DFBench/LIVE/gblur/img2.bmp", "DFBench/LIVE/gblur/img1.bmp", "DFBench/LIVE/jpeg/img1.JPG")
    touch(tmp_path, "DFBench/Kolors/000001.jpg", "elsewhere/photo.jpg")
    assert find_images(tmp_path) == {
        "Kolors": ["DFBench/Kolors/000001.jpg"],
        "LIVE": ["DFBench/LIVE/gblur/img1.bmp", "DFBench/LIVE/gblur/img2.bmp", "DFBench/LIVE/jpeg/img1.JPG"],
    }


def test_without_dfbench_any_folder_of_images_will_do(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.png", "cats/2024/b.webp", "dogs/c.png", "loose.jpeg")
    assert find_images(tmp_path) == {
        "cats": ["cats/2024/b.webp", "cats/a.png"],
        "dogs": ["dogs/c.png"],
        "images": ["loose.jpeg"],
    }


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(
        tmp_path, "a/captions.txt", "a/Thumbs.db", "a/._1.jpg", "a/.git/2.jpg", ".cache/3.jpg", "a/4.jpg", "b/dmos.csv"
    )
    (tmp_path / "a" / "folder.jpg").mkdir()
    assert find_images(tmp_path) == {"a": ["a/4.jpg"]}


def test_what_cannot_be_read_is_not_passed_over_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without permission, as a user meets it; tests may run as root, who has every one."""
    touch(tmp_path, "DFBench/LIVE/1.jpg", "DFBench/LIVE/jpeg/2.jpg")
    scandir = os.scandir

    def deny(path: str) -> Iterator[os.DirEntry]:
        if str(path).endswith("jpeg"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(PermissionError) as caught:
        find_images(tmp_path)
    assert caught.value.filename == str(tmp_path / "DFBench/LIVE/jpeg")


def test_links_to_nothing_and_pipes_are_left_to_the_reader_who_says_why(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a/2.jpg").symlink_to(tmp_path / "no such file")
    os.mkfifo(tmp_path / "a/3.jpg")
    (tmp_path / "4.jpg").symlink_to("4.jpg")
    assert find_images(tmp_path) == {"a": ["a/1.jpg", "a/2.jpg", "a/3.jpg"], "images": ["4.jpg"]}


def test_a_source_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "disk/1.jpg")
    (tmp_path / "root" / "DFBench").mkdir(parents=True)
    (tmp_path / "root" / "DFBench" / "NOVA").symlink_to(tmp_path / "disk")
    assert find_images(tmp_path / "root") == {"NOVA": ["DFBench/NOVA/1.jpg"]}


def test_what_is_extracted_is_found(tmp_path: Path) -> None:
    names = sorted(f"a/1{suffix}" for suffix in IMAGE_SUFFIXES)
    touch(tmp_path, *names, "a/2.JFIF", "a/png", "a/3.jpg.txt")
    assert find_images(tmp_path) == {"a": [*names, "a/2.JFIF"]}
    assert "a/1.avif" in names


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        (b"line\nbreak", "line\\nbreak"),
        (b"a\rb", "a\\rb"),
        (b"latin\xe9", "latin\\udce9"),
        ("caf\u00e9".encode(), "caf\u00e9"),
    ],
)
def test_a_name_that_no_csv_can_hold_stops_nothing(tmp_path: Path, name: bytes, escaped: str) -> None:
    folder = tmp_path / os.fsdecode(name)
    touch(folder, os.fsdecode(name) + ".jpg", "1.jpg")
    images = choose_images(find_images(tmp_path), limit=5)
    assert list(images) == [escaped]
    assert {printable(key) for key in images[escaped]} == {f"{escaped}/{escaped}.jpg", f"{escaped}/1.jpg"}
    assert all((tmp_path / key).is_file() for key in images[escaped])


def test_no_image_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "DFBench/notes.txt")
    with pytest.raises(InputError, match="no image"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="no folder DFBench"):
        find_images(tmp_path / "nowhere")
    # The default root is the repository: without DFBench/, its own pictures are not meant.
    monkeypatch.setattr(discovery, "REPOSITORY", tmp_path / "DFBench")
    with pytest.raises(InputError, match="no folder DFBench"):
        find_images(tmp_path / "DFBench")


def test_annotated_images_are_sorted_and_unique(tmp_path: Path) -> None:
    def write(name: str, images: list[str]) -> Path:
        turns = [{"role": "user", "content": "<image>Real?"}, {"role": "assistant", "content": "A"}]
        (tmp_path / name).write_text(json.dumps([{"messages": turns, "images": image} for image in images]))
        return tmp_path / name

    train = write("train.json", ["DFBench/NOVA/2.jpg", "./DFBench/NOVA/1.jpg", "DFBench/LIVE/gblur/1.bmp"])
    test = write("test.json", ["DFBench/NOVA/1.jpg", "alone.jpg"])
    assert annotated_images([train, test]) == {
        "LIVE": ["DFBench/LIVE/gblur/1.bmp"],
        "NOVA": ["DFBench/NOVA/1.jpg", "DFBench/NOVA/2.jpg"],
        "images": ["alone.jpg"],
    }


@pytest.mark.parametrize(
    "image", ["../secret.jpg", "DFBench/../../x.jpg", "DFBench/NOVA/../../../x.jpg", "a\\..\\..\\b.jpg"]
)
def test_annotations_do_not_climb_out_of_the_folder(tmp_path: Path, image: str) -> None:
    turns = [{"role": "user", "content": "<image>Real?"}, {"role": "assistant", "content": "A"}]
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"messages": turns, "images": name} for name in ("DFBench/NOVA/1..2.jpg", image)]))
    with pytest.raises(InputError, match=r"test.json: the image '.*\.\..*' is not below --image_root"):
        annotated_images([path])


def test_choosing_sources_and_a_number_of_each() -> None:
    images = {"a": [f"a/{i}.jpg" for i in range(100)], "b": ["b/1.jpg"]}
    assert choose_images(images) == images
    assert choose_images(images, ["b"]) == {"b": ["b/1.jpg"]}
    ten, twenty = choose_images(images, limit=10), choose_images(images, limit=20)
    assert len(ten["a"]) == 10
    assert ten["a"] == sorted(ten["a"])
    assert set(ten["a"]) < set(twenty["a"])  # more of the same choice
    assert ten["a"] != images["a"][:10]
    assert ten["b"] == ["b/1.jpg"]
    with pytest.raises(InputError, match="no image of c; there are a, b"):
        choose_images(images, ["a", "c"])
