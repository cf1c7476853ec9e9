"""A small workplace for each program: its input in a folder, its command line, and what an undisturbed run leaves."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from zipfile import ZipInfo

import numpy as np
import pytest
from builders import make_zip, put
from conftest import draw_image, save_rows
from fuzz.faults import Ended, Fault, files_below, load_main, run

from dfbench.data.annotations import Sample
from dfbench.models.registry import AGENTS
from dfbench.paths import REPOSITORY
from dfbench.predictions.schema import COLUMNS

SOURCES = {"Flick8k": "A", "CLIVE": "A", "Kolors": "B"}
ORIGINAL = REPOSITORY / "tests" / "fixtures" / "internvl_oracle" / "model"

_OF_THE_RUN = ("written", "images_per_second", "startup_seconds", "waited_for_images")
"""Metadata that two equal runs do not share."""


@dataclass
class Workplace:
    """One program and its input.

    fill: writes the input into an empty folder. words: its command line; paths are relative to that folder.
    status: of an undisturbed run. again: of one more after it, where that differs.
    """

    main: Callable[[], None]
    fill: Callable[[Path], None]
    words: tuple[object, ...]
    status: int = 0
    again: int | None = None

    def run(self, folder: Path, fault: Fault | None = None, **options: object) -> Ended:
        return run(self.main, self.words, folder, fault=fault, **options)

    @cached_property
    def undisturbed(self) -> tuple[dict[str, bytes], int]:
        """The files of an undisturbed run, and its file operations."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            self.fill(folder)
            ended = self.run(folder)
            assert ended.status == self.status, ended
            return comparable(folder), ended.operations

    def finish(self, folder: Path) -> None:
        """Run once more, without a fault: the files must be those of an undisturbed run, none more, none less."""
        ended = self.run(folder)
        statuses = {self.status} | ({self.again} if self.again is not None else set())
        assert ended.status in statuses, ended
        found, expected = comparable(folder), self.undisturbed[0]
        assert found.keys() == expected.keys(), f"files differ: {sorted(found.keys() ^ expected.keys())}"
        assert found == expected, f"content differs: {[name for name in found if found[name] != expected[name]]}"

    def random_fault(self, rng: random.Random, kind: str) -> Fault:
        return Fault(kind, rng.randint(1, self.undisturbed[1]), rng.random())


def without_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings and git take most of a program's time here, and write nothing."""
    for name in ("radar_of_sources", "radar_of_generators", "roc_curves", "reliability_curves", "histograms"):
        monkeypatch.setattr(f"dfbench.report.plots.{name}", lambda _: "<svg></svg>")
    monkeypatch.setattr("dfbench.report.plots.agreement", lambda _: "<svg></svg>")
    monkeypatch.setattr("dfbench.provenance.git_commit", lambda: "0" * 40)


def comparable(folder: Path) -> dict[str, bytes]:
    files = files_below(folder)
    for name, content in files.items():
        if name.endswith(".json") and b'"images_per_second"' in content:
            metadata = json.loads(content)
            files[name] = json.dumps({key: metadata[key] for key in metadata if key not in _OF_THE_RUN}).encode()
    return files


@cache
def image_bytes(seed: int, suffix: str = ".jpg", side: int = 24) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        draw_image(seed, side, side).save(file.name)
        return Path(file.name).read_bytes()


def samples(number: int = 4) -> list[Sample]:
    return [
        Sample(f"DFBench/{source}/{i}.jpg", label, "<image>Real (A) or generated (B)?")
        for source, label in SOURCES.items()
        for i in range(number)
    ]


def fill_images(folder: Path) -> None:
    """A dozen images and their annotations; one is cut off, one is no image and one is missing."""
    rows = samples()
    for seed, sample in enumerate(rows[:-1]):
        put(folder, sample.image, image_bytes(seed))
    put(folder, rows[1].image, image_bytes(1)[:-40])
    put(folder, rows[6].image, b"no image")
    save_rows(folder / "img_test.jsonl", rows)


def fill_release(folder: Path) -> None:
    """Archives and released annotations, with a row that has no image and an archive member that no row names."""
    rows = samples()
    (folder / "downloads").mkdir()
    for source in SOURCES:
        name = {"Flick8k": "Flick8kimg", "CLIVE": "CLIVE", "Kolors": "Kolors_000001-040000"}[source]
        members = {f"x/{i}.jpg": image_bytes(i + 10 * len(source)) for i in range(4)} | {"x/note.txt": b"x"}
        # A `ZipInfo` has no time of day, so that the archives are the same each time.
        make_zip(folder / f"downloads/{name}.zip", {ZipInfo(name): data for name, data in members.items()})
    save_rows(folder / "downloads/img_test.jsonl", rows[::3])
    save_rows(folder / "downloads/img_train_shuffled.jsonl", [row for i, row in enumerate(rows) if i % 3])


def csv_text(seed: int, number: int = 8) -> str:
    """A per-image CSV of a detector that is right more often than not."""
    rng, lines = np.random.default_rng(seed), [",".join(COLUMNS)]
    for sample in samples(number):
        prob_fake = np.float32(rng.beta(1, 3) if sample.label == "A" else rng.beta(3, 1))
        prob_real = np.float32(1) - prob_fake
        answer = "A" if prob_real > prob_fake else "B"
        lines.append(f"{sample.image},{sample.label},{answer},,,{prob_real},{prob_fake}")
    return "\n".join(lines) + "\n"


AGENT_CSVS = tuple(f"results/{name}.csv" for name in AGENTS)


def fill_results(folder: Path) -> None:
    """The three agents' CSVs with metadata."""
    (folder / "results").mkdir()
    for seed, name in enumerate(AGENT_CSVS):
        (folder / name).write_text(csv_text(seed))
        info = {"identity": {"model": f"models/{seed}", "model_fingerprint": f"{seed}"}, "finished": True}
        (folder / name).with_suffix(".json").write_text(json.dumps(info))


def fill_original(folder: Path) -> None:
    shutil.copytree(ORIGINAL, folder / "original")


def _import(*modules: str) -> None:
    """What a program imports late is imported here once, and not in each of its children."""
    for module in modules:
        import_module(module)


def scoring(checkpoint: Path) -> Workplace:
    """Of the fake model that the fixture `fake_model` puts in place of `checkpoint`."""
    from dfbench.scoring import program

    _import("dfbench.evaluation.tables", "scipy.special")
    words = ("--dataset_path", "img_test.jsonl", "--image_root", ".", "--output_csv", "out/a.csv", "--batch_size", 3)
    words += ("--model_path", checkpoint, "--device", "cpu", "--quiet")
    return Workplace(lambda: program.main("internvl3", "Score images."), fill_images, words, status=1)


def features(workers: int = 1) -> Workplace:
    _import("dfbench.features.run")
    words = ("--image_root", ".", "--output_dir", "out", "--workers", workers, "--quiet")
    return Workplace(load_main("feature_distribution.py"), fill_images, words, status=1)


def preparing(workers: int = 1) -> Workplace:
    words = ("--archives", "downloads", "--image_root", ".", "--annotation_dir", "clean", "--workers", workers)
    return Workplace(load_main("scripts/prepare_dataset.py"), fill_release, (*words, "--val_fraction", 0.3, "--quiet"))


def fusion() -> Workplace:
    _import("dfbench.fusion.fuse")
    words = (*AGENT_CSVS, "--output_csv", "results/moa_df.csv")
    return Workplace(load_main("logit_calculation.py"), fill_results, words)


def results() -> Workplace:
    _import("dfbench.report.page", "scipy.special", "scipy.stats")
    words = (*AGENT_CSVS, "--output_dir", "out", "--image_root", ".", "--features_dir", "none")
    return Workplace(load_main("process_results.py"), fill_results, (*words, "--bootstrap", 5, "--quiet"))


def conversion() -> Workplace:
    _import(*(f"dfbench.models.internvl_convert.{name}" for name in ("lora", "processor", "tokenizer", "weights")))
    words = ("--input", "original", "--output", "native")
    return Workplace(load_main("scripts/convert_internvl.py"), fill_original, words, again=1)
