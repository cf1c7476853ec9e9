"""Images on the disk: checks of headers and pixels, repair of damaged ones."""

import pytest
from builders import keys, make_zip, put

from dfbench.data.images import MAX_PIXELS
from dfbench.prepare.extract import take_inventory
from dfbench.prepare.reasons import Reason
from dfbench.prepare.verify import check_image, check_images, repair_images


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_sound_images_pass_whatever_their_extension(tmp_path, jpeg, decode, kind):
    (tmp_path / "1.jpg").write_bytes(jpeg(1, kind))
    assert check_image(tmp_path / "1.jpg", decode=decode) == ("", False)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", bytes(5000), b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_told(tmp_path, decode, content):
    (tmp_path / "1.jpg").write_bytes(content)
    trouble, truncated = check_image(tmp_path / "1.jpg", decode=decode)
    assert trouble
    assert str(tmp_path) not in trouble
    assert not truncated


def test_a_truncated_image_is_seen_by_decoding_only(tmp_path, jpeg):
    (tmp_path / "1.jpg").write_bytes(jpeg(1)[:-200])
    assert check_image(tmp_path / "1.jpg", decode=False) == ("", False)
    assert check_image(tmp_path / "1.jpg", decode=True) == ("", True)


@pytest.mark.parametrize("decode", [False, True])
def test_a_header_that_claims_too_many_pixels(tmp_path, jpeg, decode, recwarn):
    """Width and height of a BMP stand at bytes 18 and 22."""
    data = bytearray(jpeg(1, "BMP"))
    data[18:26] = (10_000).to_bytes(4, "little") * 2
    assert MAX_PIXELS < 10_000**2
    (tmp_path / "1.bmp").write_bytes(data)
    assert "claims 10000x10000 pixels" in check_image(tmp_path / "1.bmp", decode=decode)[0]
    assert not recwarn.list


@pytest.mark.parametrize("num_workers", [1, 2])
def test_checks_update_the_stock(folders, jpeg, num_workers):
    downloads, root = folders
    images = keys("mine", *(f"{i}.jpg" for i in range(300)))
    for i, image in enumerate(images):
        put(root, image, jpeg(1)[: -200 if i == 7 else None] if i != 5 else b"no image")
    inventory = take_inventory(images, root, downloads)
    truncated = check_images(inventory, images[:299], root, decode=True, num_workers=num_workers, quiet=True)
    assert truncated == {images[7]}
    assert set(inventory.faults) == {images[5]}
    assert inventory.faults[images[5]][0] is Reason.UNDECODABLE
    assert inventory.on_disk == set(images) - {images[5]}


@pytest.fixture
def damaged(folders, jpeg):
    """Three images of the right size on the disk: without a header, without its end, and as bad as in its archive."""
    downloads, root = folders
    images = keys("CLIVE", "1.bmp", "2.bmp", "3.bmp")
    make_zip(downloads / "CLIVE.zip", {"1.bmp": jpeg(1), "2.bmp": jpeg(2), "3.bmp": b"<html>"})
    put(root, images[0], bytes(len(jpeg(1))))
    put(root, images[1], jpeg(2)[:-200] + bytes(200))
    put(root, images[2], b"<html>")
    inventory = take_inventory(images, root, downloads)
    assert inventory.on_disk == set(images)
    return inventory, images, root


def test_damaged_images_are_extracted_again_where_their_archive_has_other_bytes(damaged, jpeg):
    inventory, images, root = damaged
    options = {"decode": True, "num_workers": 1, "quiet": True}
    truncated = check_images(inventory, images, root, **options)
    assert truncated == {images[1]}
    assert set(inventory.faults) == {images[0], images[2]}
    before = (root / images[2]).stat().st_mtime_ns
    assert repair_images(inventory, truncated, root, **options) == set()
    assert [(root / image).read_bytes() for image in images] == [jpeg(1), jpeg(2), b"<html>"]
    assert (root / images[2]).stat().st_mtime_ns == before
    assert inventory.on_disk == set(images[:2])
    assert set(inventory.faults) == {images[2]}
    assert check_images(inventory, images, root, **options) == set()


def test_a_damaged_image_whose_archive_is_broken_too_is_a_fault(damaged):
    inventory, images, root = damaged
    path = inventory.archives[0].path
    path.write_bytes(bytes(path.stat().st_size))
    options = {"decode": False, "num_workers": 1, "quiet": True}
    assert check_images(inventory, images[:1], root, **options) == set()
    assert inventory.faults[images[0]][0] is Reason.UNDECODABLE
    assert repair_images(inventory, set(), root, **options) == set()
    assert inventory.faults[images[0]][0] is Reason.BROKEN
    assert images[0] not in inventory.on_disk
