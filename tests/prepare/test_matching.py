"""Annotation keys against archive members, in the layouts that the published archives have, and in awkward ones."""

from pathlib import Path

import pytest

from dfbench.prepare.matching import fold, match_images
from dfbench.prepare.reasons import Reason
from dfbench.prepare.zips import Member


def member(path, position=0, *, crc=None, refusal="", archive="S.zip"):
    return Member(Path(archive), position, path, 100, position if crc is None else crc, position, refusal)


def members(*paths):
    return [member(path, position) for position, path in enumerate(paths)]


def matched(images, found):
    """image -> path of its member, "ambiguous" or "absent"."""
    outcome = match_images(images, found)
    assert list(outcome) == list(images)
    return {image: _short(match) for image, match in outcome.items()}


def _short(match):
    return (
        match.path if isinstance(match, Member) else {Reason.AMBIGUOUS: "ambiguous", Reason.ABSENT: "absent"}[match[0]]
    )


def one(image, *paths):
    return matched([image], members(*paths))[image]


# --------------------------------------------------------------------------------------------------- published layouts


def test_flat_generators():
    images = [f"DFBench/Kolors/{i:06d}.jpg" for i in (1, 2, 3)]
    found = matched(images, members("000001.jpg", "000002.jpg", "000004.jpg"))
    assert list(found.values()) == ["000001.jpg", "000002.jpg", "absent"]


@pytest.mark.parametrize("folder", ["", "edit/", "x/y/edit/", "DFBench/edit/"])
def test_a_prefix_of_the_source_does_not_matter(folder):
    assert one("DFBench/edit/Style Change/7.png", f"{folder}Style Change/7.png") == f"{folder}Style Change/7.png"


def test_live_has_the_same_names_in_every_distortion_folder():
    kinds = ("fastfading", "gblur", "jpeg", "wn")
    images = [f"DFBench/LIVE/{kind}/img{i}.jpg" for kind in kinds for i in (1, 2)]
    found = members(*(f"databaserelease2/{kind}/img{i}.bmp" for kind in reversed(kinds) for i in (2, 1)))
    for image, path in matched(images, found).items():
        assert path == image.replace("DFBench/LIVE", "databaserelease2").replace(".jpg", ".bmp")


def test_a_bare_name_that_several_folders_have_is_ambiguous():
    paths = ("databaserelease2/gblur/img1.bmp", "databaserelease2/jpeg/img1.bmp")
    outcome = match_images(["DFBench/LIVE/img1.bmp"], members(*paths))["DFBench/LIVE/img1.bmp"]
    assert outcome[0] is Reason.AMBIGUOUS
    assert all(path in outcome[1] for path in paths)


def test_a_bare_name_that_one_folder_has_is_not():
    assert one("DFBench/Flick8k/1001.jpg", "Images/1001.jpg", "Images/1002.jpg") == "Images/1001.jpg"
    assert one("DFBench/koniq10k/7.jpg", "512x384/7.jpg") == "512x384/7.jpg"


def test_a_flat_archive_with_folders_in_the_annotations():
    assert one("DFBench/Flick8k/Images/1001.jpg", "1001.jpg", "1002.jpg") == "1001.jpg"


# ------------------------------------------------------------------------------------------------- longest path suffix


def test_the_longest_common_tail_wins():
    paths = ("a/1.jpg", "z/a/1.jpg", "y/z/a/1.jpg", "z/b/1.jpg")
    assert one("DFBench/S/y/z/a/1.jpg", *paths) == "y/z/a/1.jpg"
    assert one("DFBench/S/q/b/1.jpg", *paths) == "z/b/1.jpg"


def test_what_unpacks_to_the_very_path_is_preferred_to_the_same_name_deeper_down():
    assert one("DFBench/CLIVE/1.bmp", "trainingImages/1.bmp", "1.bmp") == "1.bmp"
    assert one("DFBench/CLIVE/1.bmp", "x/CLIVE/1.bmp", "CLIVE/1.bmp") == "CLIVE/1.bmp"


def test_the_same_name_in_another_folder_is_another_image():
    """The archive has the row's own folder, so the image would have to be in it."""
    paths = ("LIVE/gblur/img1.bmp", "LIVE/jpeg/img9.bmp")
    assert one("DFBench/LIVE/jpeg/img1.bmp", *paths) == "absent"
    assert one("DFBench/LIVE/set1/jpeg/img1.bmp", "set2/jpeg/img1.bmp", "set1/jpeg/img2.bmp") == "absent"


def test_a_folder_of_another_name_still_serves_where_nothing_else_could_be_meant():
    assert one("DFBench/TID2013/images/I01.bmp", "distorted_images/I01.bmp") == "distorted_images/I01.bmp"


# ------------------------------------------------------------------------------------------------- extension and case


def test_the_extension_is_ignored_unless_it_decides():
    assert one("DFBench/S/1.jpg", "1.png") == "1.png"
    assert one("DFBench/S/1", "1.png") == "1.png"
    assert one("DFBench/S/1.jpg", "1.png", "1.jpg") == "1.jpg"
    assert one("DFBench/S/1.jpg", "1.png", "1.JPG") == "1.JPG"
    assert one("DFBench/S/1.jpg", "1.png", "1.bmp") == "ambiguous"


def test_dots_inside_a_name_are_no_extension():
    assert one("DFBench/CSIQ/1600.AWGN.1.jpg", "1600.AWGN.1.png", "1600.AWGN.2.png") == "1600.AWGN.1.png"
    assert one("DFBench/CSIQ/1600.AWGN.1", "1600.AWGN.1.png", "1600.AWGN.2.png") == "1600.AWGN.1.png"
    assert fold("a/1600.AWGN.1") == "a/1600.awgn.1"
    assert fold("a/1600.AWGN.1.PNG") == "a/1600.awgn.1"


def test_case_is_ignored_unless_it_decides():
    assert one("DFBench/TID2013/i01_01_1.bmp", "I01_01_1.BMP") == "I01_01_1.BMP"
    assert one("DFBench/LIVE/GBlur/img1.bmp", "gblur/IMG1.bmp", "jpeg/img1.bmp") == "gblur/IMG1.bmp"
    assert one("DFBench/S/a.jpg", "A.jpg", "a.jpg") == "a.jpg"
    assert one("DFBench/S/a/1.jpg", "A/1.jpg", "a/1.jpg") == "a/1.jpg"
    assert one("DFBench/S/Ab.jpg", "AB.jpg", "ab.jpg") == "ambiguous"
    assert matched(["DFBench/S/A.jpg", "DFBench/S/a.jpg"], members("a.jpg", "A.jpg")) == {
        "DFBench/S/A.jpg": "A.jpg",
        "DFBench/S/a.jpg": "a.jpg",
    }


def test_composed_and_decomposed_accents_are_equal():
    assert one("DFBench/S/caf\u00e9.jpg", "cafe\u0301.jpg") == "cafe\u0301.jpg"


def test_extensions_do_not_tell_folders_apart():
    assert one("DFBench/LIVE/img1.bmp", "gblur/img1.bmp", "jpeg/img1.jpg") == "ambiguous"
    assert one("DFBench/LIVE/img1.bmp", "gblur/img1.bmp", "gblur/img1.jpg") == "gblur/img1.bmp"
    assert one("DFBench/LIVE/img1.bmp", "img1.jpg", "jpeg/img1.bmp") == "img1.jpg"


def test_signs_that_speak_for_different_members_are_not_weighed():
    """One unpacks to the very path, the other one agrees in upper and lower case: neither is better in all."""
    assert one("DFBench/S/Ab.jpg", "ab.jpg", "deep/Ab.jpg") == "ambiguous"


# ------------------------------------------------------------------------------------------ copies, several claims


def test_copies_of_the_same_image_are_one():
    copies = [member("a/1.jpg", 0, crc=5), member("b/1.jpg", 1, crc=5)]
    assert matched(["DFBench/S/1.jpg"], copies) == {"DFBench/S/1.jpg": "a/1.jpg"}
    different = [*copies, member("c/1.jpg", 2, crc=6)]
    assert matched(["DFBench/S/1.jpg"], different) == {"DFBench/S/1.jpg": "ambiguous"}


def test_the_same_name_twice_in_an_archive_is_ambiguous_unless_equal():
    assert one("DFBench/S/1.jpg", "1.jpg", "1.jpg") == "ambiguous"


def test_parts_of_a_source_in_several_archives():
    parts = [member("000001.jpg", 0, archive="1.zip"), member("000002.jpg", 0, archive="2.zip")]
    found = match_images(["DFBench/S/000001.jpg", "DFBench/S/000002.jpg"], parts)
    assert [match.archive.name for match in found.values()] == ["1.zip", "2.zip"]


def test_the_same_name_in_several_archives_is_told_with_the_archives():
    parts = [member("1.jpg", 0, crc=1, archive="S_1-9.zip"), member("1.jpg", 0, crc=2, archive="S.zip")]
    (no_match,) = match_images(["DFBench/S/1.jpg"], parts).values()
    assert no_match == (Reason.AMBIGUOUS, "2 images match: S_1-9.zip: 1.jpg, S.zip: 1.jpg")
    (no_match,) = match_images(["DFBench/S/1.jpg"], [member("1.jpg", 0, crc=1), member("1.jpg", 0, crc=2)]).values()
    assert no_match == (Reason.AMBIGUOUS, "2 images match: 1.jpg, 1.jpg")


def test_a_member_goes_to_the_row_that_it_matches_best():
    images = ["DFBench/LIVE/img1.bmp", "DFBench/LIVE/gblur/img1.bmp"]
    assert list(matched(images, members("gblur/img1.bmp")).values()) == ["absent", "gblur/img1.bmp"]
    images = ["DFBench/S/1.png", "DFBench/S/1.jpg"]
    assert list(matched(images, members("1.jpg")).values()) == ["absent", "1.jpg"]


def test_equal_claims_on_a_member_are_ambiguous():
    images = ["DFBench/S/1.png", "DFBench/S/1.jpg", "DFBench/S/2.jpg"]
    outcome = match_images(images, members("1.bmp", "2.jpg"))
    assert outcome["DFBench/S/1.png"][0] is Reason.AMBIGUOUS
    assert outcome["DFBench/S/1.jpg"][0] is Reason.AMBIGUOUS
    assert outcome["DFBench/S/2.jpg"].path == "2.jpg"


# -------------------------------------------------------------------------------------------------------------- refused


def test_a_refused_member_is_given_only_where_no_other_matches_as_well():
    evil = member("../../000001.jpg", 0, refusal="a path that leads outside")
    sound = member("000001.jpg", 1)
    assert match_images(["DFBench/S/000001.jpg"], [evil, sound])["DFBench/S/000001.jpg"] == sound
    assert match_images(["DFBench/S/000001.jpg"], [evil])["DFBench/S/000001.jpg"] == evil
    locked = member("a/000001.jpg", 2, refusal="encrypted")
    nested = member("b/000001.jpg", 3)
    assert match_images(["DFBench/S/000001.jpg"], [locked, nested])["DFBench/S/000001.jpg"] == nested


def test_nothing_to_match():
    assert match_images([], members("1.jpg")) == {}
    assert matched(["DFBench/S/1.jpg"], []) == {"DFBench/S/1.jpg": "absent"}


def test_one_name_in_many_folders_does_not_take_quadratic_time():
    """20,000 rows with 20,000 members of one stem in as many folders: 4e8 comparisons would take minutes."""
    images = [f"DFBench/S/{i}/x.jpg" for i in range(20_000)]
    found = matched(images, members(*(f"{i}/x.jpg" for i in range(20_000))))
    assert found["DFBench/S/777/x.jpg"] == "777/x.jpg"
    assert "absent" not in found.values()


def test_nor_do_many_rows_that_match_one_member():
    outcome = match_images([f"DFBench/S/q{i}/x.jpg" for i in range(40_000)], members("x.jpg"))
    assert {detail[:23] for _, detail in outcome.values()} == {"40000 rows match x.jpg:"}
