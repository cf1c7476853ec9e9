"""The README's Python examples run, on small checkpoints and images in the places that they name."""

import re
import shutil

import pandas as pd
import pytest

from dfbench.paths import REPOSITORY
from dfbench.predictions.reader import read_detector

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def working_folder(checkpoints, photo_set, tmp_path, monkeypatch):
    """Where the README's paths lead somewhere: a checkpoint, two images, annotations, two other agents' CSVs."""
    trained = tmp_path / "qwen2.5" / "output_ckpt"
    trained.mkdir(parents=True)
    (trained / "your_weights_merged").symlink_to(checkpoints["qwen2.5"])
    shutil.copy(photo_set.path(photo_set.samples[0]), tmp_path / "photo.jpg")
    shutil.copy(photo_set.path(photo_set.samples[1]), tmp_path / "picture.png")
    (tmp_path / "DFBench").symlink_to(photo_set.root / "DFBench")
    (tmp_path / "qwen2.5" / "datasets").mkdir()
    shutil.copy(photo_set.messages, tmp_path / "qwen2.5" / "datasets" / "img_test.json")
    results = tmp_path / "results"
    results.mkdir()
    for name, prob_fake in (("internvl2.5", 0.25), ("internvl3", 0.75)):
        rows = {"image": [sample.image for sample in photo_set.samples]}
        rows |= {"label": [sample.label for sample in photo_set.samples], "answer": "A" if prob_fake < 0.5 else "B"}
        rows |= {"logit_A": "", "logit_B": "", "prob_A": 1 - prob_fake, "prob_B": prob_fake}
        pd.DataFrame(rows).to_csv(results / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dfbench.scoring.config.ScoringConfig.__init__.__defaults__", _defaults(tmp_path))
    return tmp_path


def _defaults(image_root) -> tuple:
    """The README's reader works in the repository, where image paths start; the test does not."""
    from dfbench.scoring.config import ScoringConfig

    return tuple(image_root if value == REPOSITORY else value for value in ScoringConfig.__init__.__defaults__)


def test_the_readme_has_examples_of_the_four_entry_points():
    code = "\n".join(PYTHON)
    assert all(f"{name}(" in code for name in ("score", "fuse", "evaluate", "load_detector"))


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[0])
def test_examples_run(working_folder, capsys, code):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if "score(" in code:
        agents = [read_detector(working_folder / "results" / f"{name}.csv").frame for name in ("qwen2.5", "internvl3")]
        assert agents[0]["image"].tolist() == agents[1]["image"].tolist()
        assert "MoA-DF" in printed
        assert "qwen2.5" in printed
    else:
        numbers = [float(number) for number in re.findall(r"\d\.\d*", printed)]
        assert len(numbers) == 2
        assert all(0 <= number <= 1 for number in numbers)
