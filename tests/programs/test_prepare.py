"""scripts/prepare_dataset.py from the command line, on archives in the very layouts that are published."""

import csv
import http.server
import io
import json
import os
import random
import runpy
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from builders import run_here

from dfbench.data.annotations import Sample, read_annotations
from dfbench.data.sources import CATALOGUE, source_of
from dfbench.models.registry import AGENTS, Agent
from dfbench.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "prepare_dataset.py"
KINDS = ("fastfading", "gblur", "jpeg", "wn")
QUESTION = "<image>Is this a real image or a generated image? Just answer with A or B."


@pytest.fixture(scope="module")
def encode(draw):
    """(seed, format) -> bytes of a small image, another one for each seed, which may be a word."""

    def encode(seed, kind="JPEG", **options):
        buffer = io.BytesIO()
        draw(zlib.crc32(str(seed).encode()), 32, 24).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


class Downloads:
    """A folder as `hf download` leaves it. expected: image -> the bytes that must come to lie there."""

    def __init__(self, folder, write_rows):
        self.folder, self._write_rows = folder, write_rows
        self.expected, self.absent = {}, []
        folder.mkdir(parents=True)

    def zip(self, name, members, method=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(self.folder / name, "w", method) as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    def annotate(self, *more):
        """Annotations of all expected and absent images and further (image, label) pairs, shuffled, in both shapes."""
        rows = [(image, CATALOGUE[source_of(image)].label) for image in [*self.expected, *self.absent]] + list(more)
        random.Random(0).shuffle(rows)
        cut = len(rows) // 4
        for suffix in (".json", ".jsonl"):
            for stem, part in (("img_test", rows[:cut]), ("img_train_shuffled", rows[cut:])):
                self._write_rows(self.folder / (stem + suffix), [Sample(*row, QUESTION) for row in part])


@pytest.fixture
def published(tmp_path, encode, write_rows):
    """All layouts of the published archives, sound."""
    downloads = Downloads(tmp_path / "downloads", write_rows)
    live = {f"databaserelease2/{kind}/img{i}.bmp": encode(f"{kind}{i}", "BMP") for kind in KINDS for i in range(1, 6)}
    junk_files = dict.fromkeys([f"databaserelease2/{kind}/info.txt" for kind in KINDS], b"img1.bmp 0.5")
    macos = {"__MACOSX/databaserelease2/gblur/._img1.bmp": b"Mac", "databaserelease2/.DS_Store": b"Bud1"}
    downloads.zip("LIVE.zip", junk_files | dict(reversed(live.items())) | macos)
    for name, data in live.items():
        downloads.expected[f"DFBench/LIVE/{name.removeprefix('databaserelease2/').replace('.bmp', '.jpg')}"] = data
    flickr = {f"Images/{1000 + i}_ab.jpg": encode(f"flickr{i}") for i in range(6)}
    downloads.zip("Flick8kimg.zip", flickr | {"captions.txt": b"1000_ab.jpg,a dog"})
    downloads.expected |= {f"DFBench/Flick8k/{name.removeprefix('Images/')}": data for name, data in flickr.items()}
    for i in range(4):
        downloads.expected[f"DFBench/koniq10k/{i}.jpg"] = encode(f"koniq{i}")
    downloads.zip(
        "koniq10k_512x384.zip", {f"512x384/{i}.jpg": encode(f"koniq{i}") for i in range(4)} | {"dmos.csv": b""}
    )
    for source in ("edit", "partial_source"):
        members = {f"{source}/Style Change/{i}.png": encode(f"{source}{i}", "PNG") for i in range(5)}
        downloads.zip(f"{source}.zip", members)
        downloads.expected |= {f"DFBench/{name}": data for name, data in members.items()}
    for source in ("Kolors", "PixArt", "sd3_5_large"):
        members = {f"{i:06d}.jpg": encode(f"{source}{i}") for i in range(1, 9)}
        downloads.zip(f"{source}_000001-040000.zip", members | {"._000001.jpg": b"Mac"}, zipfile.ZIP_STORED)
        downloads.expected |= {f"DFBench/{source}/{name}": data for name, data in members.items()}
    downloads.annotate()
    return downloads


def command(downloads, root, *options):
    folders = ("--archives", downloads.folder, "--image_root", root, "--annotation_dir", root / "annotations")
    return [sys.executable, str(SCRIPT), *map(str, folders), "--workers", "2", *map(str, options)]


def run(downloads, root, *options, status=0):
    """In this process; killed runs and downloads are started as users start them."""
    done = run_here("scripts/prepare_dataset.py", *command(downloads, root, *options)[2:])
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def images_below(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "DFBench").rglob("*")
        if path.is_file() and not path.name.startswith("prepare_")
    }


def tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def left_out(root):
    """image -> reason, of every row left out."""
    with (root / "DFBench" / "prepare_left_out.csv").open(newline="") as file:
        return {row["image"]: row["reason"] for row in csv.DictReader(file)}


def clean_images(root):
    paths = [root / "annotations" / f"img_{split}.jsonl" for split in ("train", "val", "test")]
    return {sample.image for path in paths for sample in read_annotations(path)}


# -------------------------------------------------------------------------------------------------------------- outcome


def test_every_image_comes_to_lie_where_the_annotations_say(published, tmp_path):
    root = tmp_path / "out"
    done = run(published, root)
    assert images_below(root) == published.expected
    assert left_out(root) == {}
    assert clean_images(root) == set(published.expected)
    assert "LIVE" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith(f"{root / 'DFBench/prepare_report.json'}: ")
    total = json.loads((root / "DFBench/prepare_report.json").read_text())["total"]
    assert total["annotated"] == total["found"] == len(published.expected) == 64


def test_awkward_archives_outcome_by_outcome(published, tmp_path, encode):
    downloads, root = published, tmp_path / "out"
    # An absent image and junk that is annotated.
    downloads.absent.append("DFBench/PixArt/000099.jpg")
    junk = ("DFBench/Kolors/._000001.jpg", "B")
    # A truncated archive.
    path = downloads.folder / "sd3_5_large_000001-040000.zip"
    path.write_bytes(path.read_bytes()[:-700])
    # Members that lead outside, are links, claim 4 GB or are broken; each annotated.
    link = zipfile.ZipInfo("linked.bmp")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    data = encode("broken")
    downloads.zip(
        "CLIVE.zip",
        {
            "ok.bmp": encode("ok"),
            "../evil.bmp": encode("evil"),
            "/absolute.bmp": encode("absolute"),
            link: b"/etc/passwd",
        }
        | {
            "broken.bmp": data,
            "text.bmp": b"<html>",
            "a/twice.bmp": encode(1),
            "b/twice.bmp": encode(2),
            "huge.bmp": b"x",
        },
        zipfile.ZIP_STORED,
    )
    path = downloads.folder / "CLIVE.zip"
    content = bytearray(path.read_bytes().replace(data[-60:-20], bytes(40)))
    struct.pack_into("<I", content, content.rfind(b"PK\x01\x02") + 24, 2**32 - 2)
    path.write_bytes(content)
    names = ("evil", "absolute", "linked", "broken", "text", "twice", "huge")
    downloads.absent += [f"DFBench/CLIVE/{name}.bmp" for name in names]
    downloads.expected["DFBench/CLIVE/ok.bmp"] = encode("ok")
    downloads.annotate(junk, ("DFBench/../evil/1.jpg", "B"), ("/etc/cron.d/1.jpg", "B"))

    done = run(downloads, root, status=1)

    lost = {image for image in downloads.expected if "sd3_5_large" in image}
    assert left_out(root) == dict.fromkeys(lost, "broken archive") | {
        "DFBench/PixArt/000099.jpg": "absent from its archive",
        "DFBench/Kolors/._000001.jpg": "junk",
        "evil/1.jpg": "unsafe path",
        "/etc/cron.d/1.jpg": "unsafe path",
        "DFBench/CLIVE/evil.bmp": "refused archive member",
        "DFBench/CLIVE/absolute.bmp": "refused archive member",
        "DFBench/CLIVE/linked.bmp": "refused archive member",
        "DFBench/CLIVE/huge.bmp": "refused archive member",
        "DFBench/CLIVE/broken.bmp": "broken archive",
        "DFBench/CLIVE/text.bmp": "undecodable",
        "DFBench/CLIVE/twice.bmp": "ambiguous",
    }
    sound = {image: content for image, content in downloads.expected.items() if image not in lost}
    assert images_below(root) == sound | {"DFBench/CLIVE/text.bmp": b"<html>"}
    assert clean_images(root) == set(sound)
    assert (
        f"sd3_5_large_000001-040000.zip: {(downloads.folder / 'sd3_5_large_000001-040000.zip').stat().st_size:,} bytes"
        in done.stdout
    )
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        f"error: {root / 'DFBench/prepare_left_out.csv'}: annotated rows have no usable image"
    )
    assert not list(tmp_path.rglob("*evil*"))
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_absent_images_are_an_error_unless_accepted(published, tmp_path):
    published.absent += ["DFBench/PixArt/000099.jpg", "DFBench/PixArt/000100.jpg"]
    published.annotate()
    assert "--allow_missing 2 accepts" in run(published, tmp_path / "out", status=1).stderr
    assert run(published, tmp_path / "out", "--allow-missing").stderr == ""
    run(published, tmp_path / "out", "--allow-missing", "2")
    run(published, tmp_path / "out", "--allow-missing", "1", status=1)
    (published.folder / "CLIVE.zip").write_bytes(b"PK")
    published.absent.append("DFBench/CLIVE/1.bmp")
    published.annotate()
    assert "broken archive" in run(published, tmp_path / "out", "--allow-missing", status=1).stderr


def test_sources_restrict_everything(published, tmp_path):
    (published.folder / "LIVE.zip").unlink()
    root = tmp_path / "out"
    done = run(published, root, "--sources", "Kolors", "Flick8k")
    assert "LIVE" not in done.stdout
    wanted = {image: data for image, data in published.expected.items() if source_of(image) in ("Kolors", "Flick8k")}
    assert images_below(root) == wanted
    assert "no archive" in run(published, root, status=1).stderr


def test_verify_only_changes_nothing_and_can_report_elsewhere(published, tmp_path):
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    before = tree(published.folder)
    assert "not extracted" in run(published, root, "--verify-only", status=1).stderr
    assert not root.exists()
    run(published, root)
    (image,) = random.Random(0).sample(sorted(published.expected), 1)
    (root / image).unlink()
    state = tree(root)
    run(published, root, "--verify_only", "--report_dir", elsewhere, status=1)
    assert tree(root) == state
    assert tree(published.folder) == before
    assert image in (elsewhere / "prepare_left_out.csv").read_text()


def test_decode_looks_at_every_pixel(published, tmp_path, encode):
    downloads, root = published, tmp_path / "out"
    jpeg, webp = encode("cut")[:-100], bytearray(encode("damaged", "WEBP"))
    webp[150:] = b"\xff" * (len(webp) - 150)  # behind the header, in the compressed pixels
    downloads.zip("CSIQ.zip", {"cut.jpg": jpeg, "damaged.webp": bytes(webp)})
    downloads.expected |= {"DFBench/CSIQ/cut.jpg": jpeg, "DFBench/CSIQ/damaged.webp": bytes(webp)}
    downloads.annotate()
    run(downloads, root)
    done = run(downloads, root, "--decode", status=1)
    assert left_out(root) == {"DFBench/CSIQ/damaged.webp": "undecodable"}
    assert "1 images lack their end but decode as far as they go, such as DFBench/CSIQ/cut.jpg" in done.stdout
    assert json.loads((root / "DFBench/prepare_report.json").read_text())["truncated"] == ["DFBench/CSIQ/cut.jpg"]


def test_subset_options(published, tmp_path):
    root = tmp_path / "out"
    run(published, root, "--limit-per-source", 3, "--balance", "--seed", 4, "--val-fraction", 0.4)
    for split in ("train", "val", "test"):
        labels = [sample.label for sample in read_annotations(root / "annotations" / f"img_{split}.jsonl")]
        assert labels.count("A") == labels.count("B") > 0
    assert set(images_below(root)) == clean_images(root)
    assert len(clean_images(root)) < len(published.expected)


# --------------------------------------------------------------------------------------------------------- interruption


@pytest.mark.slow
def test_a_killed_run_that_is_repeated_ends_as_an_uninterrupted_one(tmp_path, encode, write_rows):
    """Of a real run with workers, in the midst of its images."""
    downloads = Downloads(tmp_path / "downloads", write_rows)
    data = [encode(i) for i in range(5)]
    for source in ("Kolors", "Janus"):
        members = {f"{i:06d}.jpg": data[i % 5] for i in range(2000)}
        downloads.zip(f"{source}_000001-040000.zip", members)
        downloads.expected |= {f"DFBench/{source}/{name}": content for name, content in members.items()}
    downloads.absent.append("DFBench/Janus/999999.jpg")
    downloads.annotate()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(downloads, whole, status=1)
    process = subprocess.Popen(command(downloads, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(images_at(killed)) < 500:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
    for path in images_at(killed):
        assert path.stat().st_size == len(data[int(path.stem) % 5]), "half an image"
    run(downloads, killed, status=1)
    assert tree(killed) == {
        name: content.replace(str(whole).encode(), str(killed).encode()) for name, content in tree(whole).items()
    }


def images_at(root):
    """Images in place, by listing folders only: this is asked while they are written."""
    folders = [root / "DFBench" / source for source in ("Kolors", "Janus")]
    names = [folder / name for folder in folders if folder.exists() for name in os.listdir(folder)]
    return [path for path in names if path.suffix == ".jpg" and not path.name.startswith(".")]


# ------------------------------------------------------------------------------------------------------------- download


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download of a data set asks for. folder: its files; asked: the paths it was asked for."""

    folder: Path
    asked: list[str]

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def _answer(self, with_body):
        self.asked.append(self.path)
        commit = "0" * 40
        headers, body, status = {"X-Repo-Commit": commit}, b"", 200
        if self.path.startswith("/api/datasets/IntMeGroup/DFBench"):
            names = sorted(path.name for path in self.folder.iterdir())
            files = [{"rfilename": name, "type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            body = json.dumps(
                files if "/tree/" in self.path else {"id": "IntMeGroup/DFBench", "sha": commit, "siblings": files}
            ).encode()
            headers["Content-Type"] = "application/json"
        else:
            path = self.folder / self.path.rpartition("/")[2]
            body, status = (path.read_bytes(), 200) if path.is_file() else (b"", 404)
            headers["ETag"] = f'"{path.name}"'
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(published):
    handler = type("ThisHub", (Hub,), {"folder": published.folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_download_from_the_mirror_that_the_environment_names(published, tmp_path, hub):
    handler, address = hub
    root, fetched = tmp_path / "out", tmp_path / "fetched"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    options = ["--download", "--sources", "Kolors", "LIVE", "--archives", str(fetched)]
    done = subprocess.run([*command(published, root), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = {image: data for image, data in published.expected.items() if source_of(image) in ("Kolors", "LIVE")}
    assert images_below(root) == wanted
    assert {path.name for path in fetched.iterdir() if path.is_file()} == {
        *("img_test.json", "img_test.jsonl", "img_train_shuffled.json", "img_train_shuffled.jsonl"),
        *("Kolors_000001-040000.zip", "LIVE.zip"),
    }
    handler.asked.clear()
    again = subprocess.run([*command(published, root), *options], env=environment, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout == done.stdout


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    "options",
    [
        ["--val_fraction", "1"],
        ["--val_fraction", "-0.1"],
        ["--limit_per_source", "0"],
        ["--workers", "0"],
        ["--sauces"],
        ["--download", "--verify_only"],
    ],
)
def test_wrong_arguments_exit_with_2(published, tmp_path, options):
    run(published, tmp_path / "out", *options, status=2)


def test_mistakes_get_one_line_and_exit_with_1(published, tmp_path):
    done = run(published, tmp_path / "out", "--sources", "Kolours", status=1)
    assert done.stderr.startswith("error: ")
    assert "Kolours" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for path in published.folder.glob("*.json*"):
        path.unlink()
    assert "--download" in run(published, tmp_path / "out", status=1).stderr


@pytest.mark.parametrize(("stem", "name"), [("img_test", "test"), ("img_train_shuffled", "training")])
def test_annotations_of_one_split_alone_are_told(published, tmp_path, stem, name):
    for path in published.folder.glob(f"{stem}.json*"):
        path.unlink()
    done = run(published, tmp_path / "out", "--allow_missing", status=1)
    assert f"no {name} annotations were found" in done.stdout
    assert f"there are no released {name} annotations" in done.stderr


def test_a_name_too_long_for_the_disk_is_one_fault_and_the_rest_goes_on(published, tmp_path):
    names = ("DFBench/CLIVE/" + "x" * 300 + "/1.bmp", "DFBench/CLIVE/" + "y" * 300 + ".bmp")
    published.zip("CLIVE.zip", {name.removeprefix("DFBench/CLIVE/"): b"x" for name in names})
    published.absent += names
    published.annotate()
    assert "2 cannot be written" in run(published, tmp_path / "out", status=1).stderr
    assert left_out(tmp_path / "out") == dict.fromkeys(names, "cannot be written")
    assert images_below(tmp_path / "out") == published.expected


def test_help_loads_nothing_slow():
    done = subprocess.run([sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--allow_missing" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dfbench.prepare.pipeline" in loaded
    assert not loaded & {"torch", "transformers", "pandas", "sklearn", "scipy", "huggingface_hub"}


def test_a_further_agent_gets_its_annotations(monkeypatch):
    script = runpy.run_path(str(SCRIPT))
    agent = Agent("fourth", "Fourth", "internvl", "x/y", "data/train.jsonl", "data/test.jsonl", "python evaluate.py")
    monkeypatch.setitem(AGENTS, "fourth", agent)
    target = script["model_targets"]()[-1]
    names = [target.path(split).relative_to(REPOSITORY).as_posix() for split in ("train", "val", "test")]
    assert names == ["fourth/data/train.jsonl", "fourth/data/img_val.jsonl", "fourth/data/test.jsonl"]
