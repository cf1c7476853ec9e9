"""MoA-DF: the paper's mean on hand-worked numbers, on upstream's own files, and what the fused file says."""

import numpy as np
import pandas as pd
import pytest

from dfbench.errors import InputError
from dfbench.fusion import fuse, write_fused
from dfbench.records import Detector, read_detector, read_detectors


def detector(name: str, prob_fake: list[float], labels: str = "") -> Detector:
    """Images 0.jpg, 1.jpg ... of source edit with these P(fake)."""
    frame = pd.DataFrame({"image": [f"DFBench/edit/{i}.jpg" for i in range(len(prob_fake))]})
    frame["label"] = list(labels) if labels else "B"
    frame["prob_B"] = np.array(prob_fake, np.float32)
    frame["prob_A"] = np.float32(1) - frame["prob_B"]
    frame["logit_A"], frame["logit_B"] = np.float32(0), np.float32(0)
    return Detector(name, frame)


def test_mean_prob_on_hand_worked_numbers():
    # Image 0: (.9 + .2 + .25) / 3 = .45 -> A, though the most certain agent says B. Image 1: (.5 + .25 + .75) / 3 = .5,
    # a tie -> B. Image 2: (1 + 1 + 0) / 3 -> B.
    agents = [detector("x", [0.9, 0.5, 1]), detector("y", [0.2, 0.25, 1]), detector("z", [0.25, 0.75, 0])]
    fused = fuse(agents)
    np.testing.assert_allclose(fused["prob_B"], [0.45, 0.5, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(fused["prob_A"] + fused["prob_B"], 1, rtol=1e-6)
    assert fused["answer"].tolist() == ["A", "B", "B"]
    assert fused[["logit_A", "logit_B"]].isna().all(axis=None)
    assert fused["prob_B_y"].tolist() == agents[1].frame["prob_B"].tolist()


@pytest.mark.parametrize("num_agents", [1, 2, 5])
def test_any_number_of_agents(num_agents):
    fused = fuse([detector(f"agent{i}", [0.1 * i, 0.9]) for i in range(num_agents)])
    np.testing.assert_allclose(fused["prob_B"], [0.05 * (num_agents - 1), 0.9], rtol=1e-6)


def test_the_small_tail_survives_the_mean():
    agents = [detector("x", [1]), detector("y", [1])]
    for agent in agents:
        agent.frame["prob_A"] = np.float32(1e-30)
    assert fuse(agents)["prob_A"][0] == np.float32(1e-30)


def test_a_fused_file_reads_back_with_its_story(tmp_path):
    agents = [detector("x", [0.9, 0.1, 0.5]), detector("y", [0.7, 0.3])]
    agents[1].num_errors = 1
    frame = fuse(agents, partial=True)
    write_fused(tmp_path / "moa_df.csv", frame, agents, "mean_prob")
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
    fused = fuse(read_detectors([tmp_path / name for name in files]))
    assert fused["answer"].tolist() == ["A", "B"]
    np.testing.assert_allclose(fused["prob_A"], [1.7 / 3, 1.4 / 3], rtol=1e-6)
    assert fused["label"].tolist() == ["A", "B"]
