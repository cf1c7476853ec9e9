"""Where released files are found, how they are kept, and what a download asks for."""

import json
import subprocess
import sys

import httpx
import huggingface_hub
import pytest
from builders import agent_targets

from dfbench.data.annotations import Sample, write_annotations
from dfbench.data.splits import SPLITS
from dfbench.errors import InputError
from dfbench.prepare.hub import (
    archives_of,
    download,
    find_archives,
    find_released,
    folder_target,
    is_clean,
    keep_released,
    wanted_files,
)

SAMPLES = [Sample("DFBench/Kolors/1.jpg", "B", "<image>Real?"), Sample("DFBench/CLIVE/1.bmp", "A", "<image>Real?")]


@pytest.fixture
def released(write_rows):
    """Writes a released file (not a clean one) at a path, its folders too."""

    def write(path, samples=SAMPLES):
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_rows(path, samples)

    return write


# -------------------------------------------------------------------------------------------------------------- targets


def test_model_folders_have_the_names_that_shells_and_evaluators_read(tmp_path):
    qwen, internvl25, internvl3 = agent_targets(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in map(qwen.path, SPLITS)] == [
        "qwen2.5/datasets/img_train_shuffled.json",
        "qwen2.5/datasets/img_val.json",
        "qwen2.5/datasets/img_test.json",
    ]
    assert [str(path.relative_to(tmp_path)) for path in map(internvl3.path, SPLITS)] == [
        "internvl3/data/img_train_shuffled.jsonl",
        "internvl3/data/img_val.jsonl",
        "internvl3/data/img_test.jsonl",
    ]
    assert internvl25.path("val") == tmp_path / "internvl2.5" / "data" / "img_val.jsonl"


def test_one_folder_for_all(tmp_path):
    assert [path.name for path in map(folder_target(tmp_path).path, SPLITS)] == [
        "img_train.jsonl",
        "img_val.jsonl",
        "img_test.jsonl",
    ]


# -------------------------------------------------------------------------------------------------- finding annotations


def test_each_target_gets_its_own_shape(tmp_path, released):
    downloads = tmp_path / "downloads"
    for name in ("img_train.json", "img_train.jsonl", "img_train_shuffled.json", "img_train_shuffled.jsonl"):
        released(downloads / name)
    released(downloads / "img_test.json")
    targets = agent_targets(tmp_path)
    assert find_released(".json", targets, downloads) == {
        "train": downloads / "img_train_shuffled.json",
        "test": downloads / "img_test.json",
    }
    assert find_released(".jsonl", targets, downloads) == {
        "train": downloads / "img_train_shuffled.jsonl",
        "test": downloads / "img_test.json",  # the other shape, where its own is not there
    }


def test_model_folders_serve_where_the_downloads_lack_a_file(tmp_path, released):
    targets = agent_targets(tmp_path)
    mine = released(targets[1].path("test"))
    others = released(targets[0].path("train"))
    assert find_released(".jsonl", targets, tmp_path / "none") == {"train": others, "test": mine}
    assert find_released(".json", targets, tmp_path / "none") == {"train": others, "test": mine}


def test_unshuffled_training_rows_are_better_than_none(tmp_path, released):
    path = released(tmp_path / "img_train.json")
    target = folder_target(tmp_path / "out")
    assert find_released(".jsonl", [target], tmp_path) == {"train": path}


def test_clean_files_are_no_released_ones_but_what_was_kept_is(tmp_path, released):
    target = folder_target(tmp_path)
    path = released(tmp_path / "img_test.jsonl")
    assert find_released(".jsonl", [target], tmp_path) == {"test": path}
    kept = keep_released(path)
    write_annotations(SAMPLES, path)
    assert find_released(".jsonl", [target], tmp_path) == {"test": kept}
    kept.unlink()
    assert find_released(".jsonl", [target], tmp_path) == {}


def test_rows_of_the_clean_shape_are_taken_from_the_downloads(tmp_path):
    """Somebody's own data may come in that shape; only at a target's path does it mean our own output."""
    write_annotations(SAMPLES, tmp_path / "downloads" / "img_test.jsonl")
    target = folder_target(tmp_path / "out")
    assert find_released(".jsonl", [target], tmp_path / "downloads") == {
        "test": tmp_path / "downloads" / "img_test.jsonl"
    }


# --------------------------------------------------------------------------------------------------------- keeping them


def test_is_clean(tmp_path, released):
    assert not is_clean(released(tmp_path / "a.json"))
    assert not is_clean(released(tmp_path / "a.jsonl"))
    for name in ("b.json", "b.jsonl"):
        write_annotations(SAMPLES, tmp_path / name)
        assert is_clean(tmp_path / name)
    (tmp_path / "broken.json").write_text('[{"messages": ')
    assert not is_clean(tmp_path / "broken.json")


def test_a_released_file_is_renamed_once_and_a_clean_one_never(tmp_path, released):
    path = released(tmp_path / "img_test.json")
    content = path.read_bytes()
    kept = keep_released(path)
    assert kept == tmp_path / "img_test.released.json"
    assert kept.read_bytes() == content
    assert not path.exists()
    assert keep_released(path) == path  # nothing there
    write_annotations(SAMPLES, path)
    assert keep_released(path) == path
    assert is_clean(path)


def test_the_same_file_downloaded_again_is_no_second_one(tmp_path, released):
    keep_released(released(tmp_path / "img_test.json"))
    assert keep_released(released(tmp_path / "img_test.json")).name == "img_test.released.json"
    assert [file.name for file in tmp_path.iterdir()] == ["img_test.released.json"]


def test_two_different_released_files_are_both_left_alone(tmp_path, released):
    keep_released(released(tmp_path / "img_test.json"))
    path = released(tmp_path / "img_test.json", SAMPLES[:1])
    with pytest.raises(InputError, match=r"differs from img_test\.released\.json"):
        keep_released(path)
    assert path.exists()
    assert len(json.loads((tmp_path / "img_test.released.json").read_text())) == 2


# ------------------------------------------------------------------------------------------------------------- archives


def test_archives_are_found_by_their_published_names_also_in_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    names = ("koniq10k_512x384.zip", "real/live.ZIP", "Kolors_000001-020000.zip", "Kolors_020001-040000.zip")
    for name in (*names, "deep/deeper/CLIVE.zip", "edit.zip.incomplete", "mine.zip", "minecraft.zip"):
        (tmp_path / name).touch()
    found = find_archives(tmp_path)
    assert archives_of("koniq10k", found) == [tmp_path / "koniq10k_512x384.zip"]
    assert archives_of("LIVE", found) == [tmp_path / "real" / "live.ZIP"]
    assert [path.name for path in archives_of("Kolors", found)] == list(names[2:])
    assert archives_of("CLIVE", found) == archives_of("edit", found) == []
    assert archives_of("mine", found) == [tmp_path / "mine.zip"]
    assert find_archives(tmp_path / "gone") == {}


def test_a_source_name_is_no_pattern(tmp_path):
    (tmp_path / "sd3x5.zip").touch()
    assert archives_of("sd3.5", find_archives(tmp_path)) == []


# ------------------------------------------------------------------------------------------------------------- download


def test_only_the_archives_asked_for_are_wanted():
    annotations = ["img_train_shuffled.json", "img_train_shuffled.jsonl", "img_test.json", "img_test.jsonl"]
    assert wanted_files(["Kolors", "CLIVE"]) == [*annotations, "CLIVE.zip", "Kolors_000001-040000.zip"]
    assert len(wanted_files([])) == 4 + 21
    with pytest.raises(InputError, match="Kolor, demo_photos is not published; there are Flick8k"):
        wanted_files(["demo_photos", "Kolor"])


@pytest.fixture
def fetching(monkeypatch):
    """Stands for the Hub's client: notes how it was called, and puts the files that are in `names` into the folder."""

    def snapshot_download(*args, **options):
        calls.append((args, options))
        options["local_dir"].mkdir(exist_ok=True)
        for name in names:
            (options["local_dir"] / name).parent.mkdir(exist_ok=True)
            (options["local_dir"] / name).touch()

    calls, names = [], []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls, names


def test_download_asks_the_hub_for_those_files_only(tmp_path, fetching):
    calls, names = fetching
    names += wanted_files(["CLIVE"])
    download(tmp_path, ["CLIVE"])
    ((args, options),) = calls
    assert args == ("IntMeGroup/DFBench",)
    assert options["repo_type"] == "dataset"
    assert options["local_dir"] == tmp_path
    assert {"CLIVE.zip", "*/CLIVE.zip", "img_test.json"} <= set(options["allow_patterns"])
    assert not any("Kolors" in pattern for pattern in options["allow_patterns"])


def test_a_quiet_download_shows_no_progress(tmp_path):
    """In a fresh process: `huggingface_hub` loads its parts when they are first asked for."""
    program = """
import sys, pathlib, huggingface_hub
from dfbench.prepare.hub import download, wanted_files
folder = pathlib.Path(sys.argv[1])
def snapshot_download(*args, **options):
    for name in wanted_files(["CLIVE"]):
        (folder / name).touch()
huggingface_hub.snapshot_download = snapshot_download
download(folder, ["CLIVE"], quiet=True)
from huggingface_hub.utils import are_progress_bars_disabled
print(are_progress_bars_disabled())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_download_that_brings_less_than_was_asked_for_is_an_error(tmp_path, fetching):
    """The Hub's client only warns where the server is out of reach and the folder has something in it."""
    _, names = fetching
    names += [name for name in wanted_files(["CLIVE", "LIVE"]) if name not in ("CLIVE.zip", "img_test.jsonl")]
    with pytest.raises(InputError, match=r"failed: img_test.jsonl, CLIVE.zip did not come.*HF_ENDPOINT"):
        download(tmp_path, ["CLIVE", "LIVE"])
    names += ["real/CLIVE.zip", "img_test.jsonl"]
    download(tmp_path, ["CLIVE", "LIVE"])


@pytest.mark.parametrize("error", [OSError("disk full\nand more"), httpx.ConnectError("no route"), ConnectionError()])
def test_a_download_that_fails_gets_one_line(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"HF_ENDPOINT.*repeat the command"):
        download(tmp_path, [])
