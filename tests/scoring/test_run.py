"""A run without the program around it: what `score` takes, writes and gives back."""

import json
import shutil
from dataclasses import replace

import pytest

from dfbench.errors import InputError, OptionError
from dfbench.predictions.reader import read_detector
from dfbench.scoring.config import ScoringConfig
from dfbench.scoring.run import check_complete, score


@pytest.fixture
def config(fake_model, photo_set, tmp_path):
    return ScoringConfig(tmp_path, photo_set.messages, tmp_path / "a.csv", photo_set.root, device="cpu", quiet=True)


def test_score_gives_back_what_it_wrote(config, photo_set, capsys):
    result = score(config)
    assert (result.output_csv, result.rows, result.errors, result.warnings) == (config.output_csv, 12, 0, 0)
    assert result.num_scored == 12
    assert result.images_per_second > 0
    assert read_detector(config.output_csv).frame["image"].tolist() == [sample.image for sample in photo_set.samples]
    assert capsys.readouterr().out == ""
    again = score(config)
    assert (again.rows, again.num_scored, again.images_per_second) == (12, 0, 0)


def test_images_that_fail_are_counted_and_raise_nothing(config, photo_set, tmp_path):
    root = shutil.copytree(photo_set.root, tmp_path / "damaged")
    (root / photo_set.samples[1].image).unlink()
    path = root / photo_set.samples[6].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    result = score(replace(config, image_root=root))
    assert (result.rows, result.errors, result.warnings, result.num_scored) == (11, 1, 1, 11)


@pytest.mark.parametrize(
    ("asked", "used"), [("auto", "packed"), ("packed", "packed"), ("transformers", "transformers")]
)
def test_the_engine_reaches_the_scorer_and_the_metadata(config, monkeypatch, asked, used):
    from dfbench.scoring import run

    given, load = [], run.load_scorer
    monkeypatch.setattr(run, "load_scorer", lambda prompt, **options: given.append(prompt) or load(prompt, **options))
    score(replace(config, engine=asked))
    assert given[0].engine == used
    info = json.loads(config.output_csv.with_suffix(".json").read_text())
    assert info["identity"]["engine"] == used
    other = "packed" if used == "transformers" else "transformers"
    with pytest.raises(InputError, match=rf"a\.csv: it was begun with engine {used}, and this run has {other}"):
        score(replace(config, engine=other))


def test_what_the_machine_cannot_do(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OptionError, match="no usable CUDA GPU"):
        score(replace(config, device="cuda"))
    assert not config.output_csv.exists()


def test_images_that_got_lost_on_the_way(tmp_path):
    """As by two runs on one file, or hosts that do not share the folder."""
    check_complete(tmp_path / "agent.csv", {"rows": 11, "errors": 1, "warnings": 3}, 12)
    with pytest.raises(InputError, match=r"agent\.csv: 11 of 12 images after the run"):
        check_complete(tmp_path / "agent.csv", {"rows": 11, "errors": 0, "warnings": 0}, 12)
