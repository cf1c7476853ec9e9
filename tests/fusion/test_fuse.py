"""Fusing files: which images, which agents, what the fused file says, and what a library user gets."""

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.evaluation.evaluate import evaluate
from dfbench.fusion.fitting import Fold, Fusion
from dfbench.fusion.fuse import fuse, fused_frame, write_fused
from dfbench.fusion.rules import Stacked
from dfbench.io import write_json
from dfbench.predictions.join import join
from dfbench.predictions.reader import Detector, read_detector, write_detector
from dfbench.predictions.schema import errors_path, info_path


def detector(name: str, prob_fake: list[float]) -> Detector:
    """Images 0.jpg, 1.jpg ... of source edit, all of them fake, with these P(fake)."""
    frame = pd.DataFrame({"image": [f"DFBench/edit/{i}.jpg" for i in range(len(prob_fake))]})
    frame["label"] = "B"
    frame["prob_B"] = np.array(prob_fake, np.float32)
    frame["prob_A"] = np.float32(1) - frame["prob_B"]
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    return Detector(name, frame)


def test_folds_apply_to_their_own_sources():
    agent = detector("x", [0.8, 0.8])
    agent.frame["image"] = ["DFBench/edit/0.jpg", "DFBench/LIVE/0.jpg"]
    folds = (Fold(["LIVE"], Stacked([0], 0)), Fold(["edit"], Stacked([-1], 0)))
    fused = fused_frame(join([agent]), Fusion(Stacked([1], 0), "others", (), folds))
    np.testing.assert_allclose(fused["prob_B"], [0.2, 0.5], rtol=1e-6)


def test_a_fused_file_reads_back_with_its_provenance(tmp_path):
    agents = [detector("x", [0.9, 0.1, 0.5]), detector("y", [0.7, 0.3])]
    agents[1].num_errors = 1
    write_fused(tmp_path / "moa_df.csv", fuse(agents, partial=True))
    found = read_detector(tmp_path / "moa_df.csv")
    np.testing.assert_allclose(found.frame["prob_B"], [0.8, 0.2], rtol=1e-6)
    assert found.info["detector"] == "MoA-DF"
    assert found.info["fusion"] == "mean_prob"
    assert found.info["answers"] == {"A": 1, "B": 1}
    assert [(a["name"], a["rows"], a["left_out"], a["errors"]) for a in found.info["agents"]] == [
        ("x", 3, 1, 0),
        ("y", 2, 0, 1),
    ]
    assert {"dfbench", "python", "numpy", "pandas"} <= set(found.info["versions"])


def test_different_images_are_refused_unless_partial():
    with pytest.raises(InputError, match="y lacks 1"):
        fuse([detector("x", [0.9, 0.1]), detector("y", [0.7])])


def test_a_fused_detector_is_no_agent():
    fused = detector("MoA-DF", [0.5])
    fused.info = {"fusion": "mean_prob"}
    with pytest.raises(InputError, match="MoA-DF: this is a fused detector"):
        fuse([detector("x", [0.5]), fused])


def test_upstream_files_are_fused_by_probabilities_not_by_position(tmp_path):
    """Upstream's script takes the 4th and 5th column of each file: log-probabilities in the Qwen file.

    Image 1: P(real) is .6, .55 and .55, so A. By position the sums are -0.5108 + .55 + .55 = .5892 for A and
    -0.9163 + .45 + .45 = -.0163 for B: A as well. Image 2: .9, .3 and .2, mean .4667, so B; by position
    -0.1054 + .3 + .2 = .3946 against -2.3026 + .7 + .8 = -.8026: A, which is wrong.
    """
    files = {
        "resultsqwen25.csv": (
            "image_path,predicted_reply,true_label,logprob_A,logprob_B,prob_A,prob_B",
            "1.jpg,A,A,-0.5108,-0.9163,0.6000,0.4000",
            "2.jpg,A,B,-0.1054,-2.3026,0.9000,0.1000",
        ),
        "resultsintern25.csv": ("imgname,answer,output,prob_A,prob_B", "2.jpg,B,B,0.3,0.7", "1.jpg,A,A,0.55,0.45"),
        "resultsintern3.csv": ("imgname,answer,output,prob_A,prob_B", "1.jpg,A,A,0.55,0.45", "2.jpg,B,B,0.2,0.8"),
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    fused = fuse([tmp_path / name for name in files]).frame
    assert fused["answer"].tolist() == ["A", "B"]
    np.testing.assert_allclose(fused["prob_A"], [1.7 / 3, 1.4 / 3], rtol=1e-6)
    assert fused["label"].tolist() == ["A", "B"]


# Whose place a fused file takes.


@pytest.fixture
def agent_csvs(tmp_path):
    """Three agents of a scoring run, with metadata and an error each."""
    paths = []
    rng = np.random.default_rng(0)
    for name in "abc":
        path = tmp_path / f"{name}.csv"
        agent = detector(name, list(rng.random(20)))
        agent.frame["answer"] = np.where(agent.frame["prob_A"] > agent.frame["prob_B"], "A", "B")
        agent.info = {"identity": {"model_fingerprint": name}, "finished": True, "rows": 20}
        write_detector(path, agent)
        errors_path(path).write_text("image,error\nDFBench/edit/99.jpg,gone\n")
        paths.append(path)
    return paths


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_fused_file_does_not_take_an_agents_place(agent_csvs, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"c\.csv: its scores are those of a scoring run"):
        write_fused(agent_csvs[2], fuse(agent_csvs[:2]))
    assert contents(tmp_path) == before
    write_fused(agent_csvs[2], fuse(agent_csvs[:2]), overwrite=True)
    found = read_detector(agent_csvs[2])
    assert found.is_fusion
    assert found.num_errors == 0
    assert contents(tmp_path).keys() == before.keys() - {"c.errors.csv"}


def test_the_same_fusion_is_written_again(agent_csvs, tmp_path):
    path = tmp_path / "f" / "moa_df.csv"
    weights = [1.0, 2, 3]
    for options in ({}, {"rule": "vote"}, {"rule": "weighted", "weights": weights}):
        write_fused(path, fuse(agent_csvs, **options), overwrite=True)
        before = contents(path.parent)
        write_fused(path, fuse(agent_csvs, **options))
        assert contents(path.parent) == before
    # Agents that were scored again have other numbers, and are the same agents.
    agent = read_detector(agent_csvs[0])
    agent.frame[["prob_A", "prob_B"]] = np.float32([0.25, 0.75])
    agent.frame["answer"] = "B"
    write_detector(agent_csvs[0], agent)
    write_fused(path, fuse(agent_csvs, "weighted", weights=weights))


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        (slice(2), {"rule": "weighted", "weights": [1, 2]}),
        (slice(3), {}),
        (slice(3), {"rule": "weighted", "weights": [1, 2, 4]}),
    ],
)
def test_another_fusion_needs_another_name(agent_csvs, tmp_path, chosen, options):
    path = tmp_path / "f" / "moa_df.csv"
    write_fused(path, fuse(agent_csvs, "weighted", weights=[1, 2, 3]))
    before = contents(path.parent)
    with pytest.raises(InputError, match=r"moa_df\.csv: its scores were fused otherwise \(weighted .*--overwrite"):
        write_fused(path, fuse(agent_csvs[chosen], **options))
    assert contents(path.parent) == before


def test_a_kill_between_metadata_and_rows_is_mended_by_the_same_command(agent_csvs, tmp_path):
    path = tmp_path / "f" / "moa_df.csv"
    write_fused(path, fuse(agent_csvs))
    path.unlink()
    write_fused(path, fuse(agent_csvs))
    assert len(read_detector(path).frame) == 20


# Agents that are one.


def test_a_copy_of_an_agent_does_not_count_twice(agent_csvs, tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(agent_csvs[0].read_bytes())
    with pytest.raises(InputError) as caught:
        fuse([*agent_csvs, copy])
    assert str(caught.value).startswith(
        f"{agent_csvs[0]}, {copy}: the same answers to all 20 images, which would count"
    )


def test_the_same_model_does_not_count_twice_whatever_it_answers(agent_csvs):
    for path, dtype in zip(agent_csvs[:2], ("float32", "bfloat16"), strict=True):
        write_json(info_path(path), {"identity": {"model_fingerprint": "1f", "dtype": dtype}})
    with pytest.raises(
        InputError, match=r"a\.csv, .*b\.csv: the same model by their metadata, which would count twice"
    ):
        fuse(agent_csvs)
    write_json(info_path(agent_csvs[1]), {"identity": {"model_fingerprint": "1f", "prompt": "another"}})
    fuse(agent_csvs)


def test_detectors_that_say_0_or_1_may_agree():
    answers = [1.0, 0.0, 1.0, 1.0]
    assert len(fuse([detector("x", answers), detector("y", answers)]).frame) == 4


def test_a_fusion_of_runs_that_have_not_finished_has_not_either(agent_csvs):
    assert fuse(agent_csvs).is_finished
    write_json(info_path(agent_csvs[1]), {"identity": {"model_fingerprint": "b"}, "finished": False})
    fused = fuse(agent_csvs)
    assert not fused.is_finished
    assert fused.info["finished"] is False


def test_an_unknown_rule_names_those_that_there_are():
    with pytest.raises(InputError, match=r"magic is no fusion rule; expected one of mean_prob, .*stacked"):
        fuse([detector("x", [0.5])], "magic")


def test_what_a_rule_does_not_take_is_refused():
    for options in ({"weights": [1]}, {"fit_csvs": ["val.csv"]}):
        with pytest.raises(InputError, match="vote takes no weights and is not fitted"):
            fuse([detector("x", [0.5])], "vote", **options)


def test_the_fused_detector_is_evaluated_without_a_file():
    agents = [detector("x", [0.9, 0.1]), detector("y", [0.8, 0.4])]
    found = evaluate([*agents, fuse(agents), fuse(agents, "vote")])
    assert found.names == ["x", "y", "MoA-DF", "MoA-DF (vote)"]
    assert found.overall["accuracy"].tolist() == [0.5] * 4
    assert found.detectors[2].is_fusion
