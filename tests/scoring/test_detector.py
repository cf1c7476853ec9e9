import numpy as np
import pytest
from PIL import Image

from dfbench import ScoringConfig, load_detector, score
from dfbench.data.annotations import QUESTION, Sample
from dfbench.data.images import ImageError
from dfbench.errors import InputError
from dfbench.predictions.reader import read_detector


@pytest.fixture(scope="module")
def images(photo_set):
    return [photo_set.path(sample) for sample in photo_set.samples[:5]]


def test_a_detector_says_what_a_scoring_run_writes(checkpoints, photo_set, images, write_rows, tmp_path):
    rows = [Sample(sample.image, sample.label, QUESTION) for sample in photo_set.samples[:5]]
    annotations = write_rows(tmp_path / "rows.json", rows)
    for agent, folder in checkpoints.items():
        config = ScoringConfig(folder, annotations, tmp_path / f"{agent}.csv", photo_set.root, device="cpu", quiet=True)
        assert score(config).rows == 5
        expected = read_detector(config.output_csv).frame["prob_B"]
        found = load_detector(folder, device="cpu").predict(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_several_agents_are_fused_by_their_mean(checkpoints, images):
    folders = list(checkpoints.values())
    alone = [load_detector(folder, device="cpu").predict(images) for folder in folders]
    fused = load_detector(folders, device="cpu", batch_size=2)
    np.testing.assert_allclose(fused.predict_by_agent(images), np.stack(alone, axis=1), atol=1e-5)
    np.testing.assert_allclose(fused.predict(images), np.mean(alone, axis=0), atol=1e-5)


def test_one_image_as_a_path_a_text_or_pixels(checkpoints, images):
    detector = load_detector(checkpoints["internvl3"], device="cpu")
    with Image.open(images[0]) as image:
        found = [detector.predict(one) for one in (images[0], str(images[0]), image)]
    assert [answer.shape for answer in found] == [(1,)] * 3
    np.testing.assert_allclose(found[1:], [found[0]] * 2, atol=1e-6)


def test_another_question_gets_another_answer(checkpoints, images):
    folder = checkpoints["qwen2.5"]
    answers = [load_detector(folder, device="cpu", question=text).predict(images) for text in (QUESTION, "A or B?")]
    assert np.abs(answers[0] - answers[1]).max() > 1e-6


def test_no_images_at_all(checkpoints):
    assert load_detector(checkpoints["internvl3"], device="cpu").predict([]).shape == (0,)


def test_what_is_no_image_and_what_is_no_checkpoint(checkpoints, tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(ImageError):
        load_detector(checkpoints["internvl3"], device="cpu").predict(tmp_path / "x.jpg")
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        load_detector(tmp_path / "nowhere", device="cpu")
