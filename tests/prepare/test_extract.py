"""Images on the disk and in archives: what counts as there, extraction of the rest."""

import shutil
import zipfile
from collections import namedtuple

import pytest
from builders import keys, make_zip, put

from dfbench.errors import InputError
from dfbench.prepare.extract import extract_missing, take_inventory
from dfbench.prepare.reasons import Reason

# ------------------------------------------------------------------------------------------------------------ inventory


def test_images_on_the_disk_in_the_archive_and_nowhere(folders, jpeg):
    downloads, root = folders
    make_zip(downloads / "CLIVE.zip", {"1.bmp": jpeg(1), "2.bmp": jpeg(2), "x/3.bmp": jpeg(3), "y/3.bmp": jpeg(4)})
    images = keys("CLIVE", "1.bmp", "2.bmp", "3.bmp", "4.bmp")
    put(root, images[0], jpeg(1))
    put(root, images[1], jpeg(2)[:-1])  # half of it
    inventory = take_inventory(images, root, downloads)
    assert inventory.on_disk == {images[0]}
    assert inventory.to_extract(images) == [images[1]]
    assert {image: reason for image, (reason, _) in inventory.faults.items()} == {
        images[2]: Reason.AMBIGUOUS,
        images[3]: Reason.ABSENT,
    }
    assert [archive.num_images for archive in inventory.archives] == [4]
    assert not (root / "DFBench/CLIVE/3.bmp").exists()


def test_without_its_archive_an_image_on_the_disk_counts_and_others_are_absent(folders, jpeg):
    downloads, root = folders
    clive, live = keys("CLIVE", "1.bmp", "2.bmp"), keys("LIVE", "1.bmp")
    put(root, clive[0], jpeg(1))
    inventory = take_inventory(clive + live, root, downloads)
    assert inventory.on_disk == {clive[0]}
    assert inventory.faults[clive[1]][0] is Reason.ABSENT
    assert inventory.faults[live[0]][0] is Reason.NO_ARCHIVE


def test_a_broken_archive_is_named_and_other_sources_go_on(folders, jpeg):
    downloads, root = folders
    make_zip(downloads / "CLIVE.zip", {"1.bmp": jpeg(1)})
    (downloads / "LIVE.zip").write_bytes((downloads / "CLIVE.zip").read_bytes()[:100])
    images = keys("CLIVE", "1.bmp") + keys("LIVE", "1.bmp")
    inventory = take_inventory(images, root, downloads)
    assert list(inventory.members) == images[:1]
    reason, detail = inventory.faults[images[1]]
    assert reason is Reason.BROKEN
    assert detail.startswith("LIVE.zip: 100 bytes")


def test_a_row_whose_only_member_is_refused(folders, jpeg):
    downloads, root = folders
    make_zip(downloads / "CLIVE.zip", {"../1.bmp": jpeg(1), "2.bmp": jpeg(2)})
    inventory = take_inventory(keys("CLIVE", "1.bmp", "2.bmp"), root, downloads)
    assert inventory.faults[keys("CLIVE", "1.bmp")[0]][0] is Reason.REFUSED
    assert list(inventory.members) == keys("CLIVE", "2.bmp")


def test_a_folder_in_an_images_place_is_no_image(folders, jpeg):
    downloads, root = folders
    make_zip(downloads / "CLIVE.zip", {"1.bmp": jpeg(1)})
    (image,) = keys("CLIVE", "1.bmp")
    (root / image).mkdir(parents=True)
    inventory = take_inventory([image], root, downloads)
    assert extract_missing(inventory, [image], root, num_workers=1, quiet=True) == 0
    assert inventory.faults[image][0] is Reason.UNWRITABLE


# ----------------------------------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize("num_workers", [1, 2])
def test_only_what_is_wanted_and_missing_is_extracted(folders, jpeg, num_workers):
    downloads, root = folders
    images = keys("Kolors", *(f"{i:06d}.jpg" for i in range(600))) + keys("CLIVE", "1.bmp")
    make_zip(downloads / "Kolors_000001-040000.zip", {f"{i:06d}.jpg": jpeg(i % 7) for i in range(600)})
    make_zip(downloads / "CLIVE.zip", {"deep/er/1.bmp": jpeg(8)})
    put(root, images[0], jpeg(0))
    before = (root / images[0]).stat().st_mtime_ns
    inventory = take_inventory(images, root, downloads)
    wanted = [*images[:500], images[-1]]
    assert extract_missing(inventory, wanted, root, num_workers=num_workers, quiet=True) == 500
    assert inventory.on_disk == set(wanted)
    assert inventory.to_extract(images) == images[500:600]
    assert {path.name for path in (root / "DFBench/Kolors").iterdir()} == {f"{i:06d}.jpg" for i in range(500)}
    assert all((root / image).read_bytes() == jpeg(i % 7) for i, image in enumerate(images[:500]))
    assert (root / images[-1]).read_bytes() == jpeg(8)
    assert (root / images[0]).stat().st_mtime_ns == before


def test_a_broken_member_becomes_a_fault_of_its_row(folders, jpeg):
    downloads, root = folders
    path = downloads / "CLIVE.zip"
    make_zip(path, {"1.bmp": jpeg(1), "2.bmp": jpeg(2)}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(jpeg(1)[-60:-20], bytes(40)))
    images = keys("CLIVE", "1.bmp", "2.bmp")
    inventory = take_inventory(images, root, downloads)
    assert extract_missing(inventory, images, root, num_workers=1, quiet=True) == 1
    reason, detail = inventory.faults[images[0]]
    assert reason is Reason.BROKEN
    assert detail.startswith("CLIVE.zip: broken in its archive")
    assert sorted(file.name for file in (root / "DFBench/CLIVE").iterdir()) == ["2.bmp"]


def test_folders_that_cannot_be_are_faults_of_their_images_only(folders, jpeg):
    downloads, root = folders
    names = ("x" * 300 + "/1.bmp", "taken/2.bmp", "taken/deeper/3.bmp", "loop/4.bmp", "fine/5.bmp")
    make_zip(downloads / "CLIVE.zip", {name: jpeg(i) for i, name in enumerate(names)})
    images = keys("CLIVE", *names)
    put(root, "DFBench/CLIVE/taken", b"a file where a folder has to be")
    (root / "DFBench/CLIVE/loop").symlink_to("loop")
    inventory = take_inventory(images, root, downloads)
    assert extract_missing(inventory, images, root, num_workers=1, quiet=True) == 1
    assert inventory.on_disk == {images[4]}
    assert {image: reason for image, (reason, _) in inventory.faults.items()} == dict.fromkeys(
        images[:4], Reason.UNWRITABLE
    )
    assert "too long" in inventory.faults[images[0]][1]
    assert inventory.to_extract(images) == []


def test_nothing_is_written_where_the_disk_is_too_small(folders, jpeg, monkeypatch):
    downloads, root = folders
    make_zip(downloads / "CLIVE.zip", {"1.bmp": jpeg(1), "2.bmp": jpeg(2)})
    images = keys("CLIVE", "1.bmp", "2.bmp")
    inventory = take_inventory(images, root, downloads)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 8191))  # two blocks of 4096 bytes are needed
    with pytest.raises(InputError, match=r"2 images take .* GB. Make room"):
        extract_missing(inventory, images, root, num_workers=1, quiet=True)
    assert not root.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 8192))
    assert extract_missing(inventory, images, root, num_workers=1, quiet=True) == 2
