"""The contract of every model family's prompt: sizes known beforehand, copies for workers, letters, padded batches."""

import json
import pickle

import pytest
import torch

from dfbench.data.images import load_image
from dfbench.errors import InputError
from dfbench.models.base import ModelInputs, Prompt, answer_token_ids
from dfbench.models.registry import load_prompt

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")


@pytest.fixture(scope="module", params=AGENTS)
def prompt(request, checkpoints) -> Prompt:
    return load_prompt(checkpoints[request.param])


@pytest.mark.parametrize("engine", ["packed", "transformers"])
@pytest.mark.parametrize("protocol", ["upstream", "native"])
@pytest.mark.parametrize("agent", AGENTS)
def test_the_size_of_an_image_is_what_it_takes_in_the_end(checkpoints, photo_set, agent, protocol, engine):
    prompt = load_prompt(checkpoints[agent], protocol, engine=engine)
    prompt.share_prefix({sample.question for sample in photo_set.samples})
    assert (prompt.prefix == []) is (engine == "transformers")
    for sample in photo_set.samples:
        rgb = load_image(photo_set.path(sample)).rgb
        inputs, size = prompt.prepare(sample.question, rgb), prompt.sequence_size(sample.question, *rgb.size)
        assert size.tokens == len(inputs.input_ids) - len(prompt.prefix)
        assert size.vision == len(inputs.pixels)
        assert size[:2] == prompt.size_of_inputs(inputs)[:2]


def test_the_answers_are_a_and_b(prompt):
    assert prompt.tokenizer.decode(list(prompt.answer_tokens)) == "AB"


def test_a_prompt_survives_pickling(prompt, photo_set):
    """Worker processes hold a copy."""
    rgb = load_image(photo_set.path(photo_set.samples[0])).rgb
    copy: Prompt = pickle.loads(pickle.dumps(prompt.for_engine("transformers")))  # noqa: S301 - our own bytes
    ours, theirs = prompt.prepare("Real?", rgb), copy.prepare("Real?", rgb)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.pixels, theirs.pixels)
    assert copy.engine == "transformers"


def test_the_description_of_a_prompt_is_json_and_shows_the_prompt(prompt):
    description = json.loads(json.dumps(prompt.describe()))
    assert "{question}" in description["prompt"]
    assert description["protocol"]
    assert description["image"]


def test_a_prompt_for_another_engine_is_another_prompt(prompt):
    prefix = prompt.prefix
    other = prompt.for_engine("transformers")
    assert (prompt.engine, prompt.prefix, other.engine, other.prefix) == ("packed", prefix, "transformers", [])
    back = other.for_engine("packed")
    assert (back.engine, back.prefix) == ("packed", prefix)
    assert other.for_engine("transformers") is other


# ------------------------------------------------------------------------------------------------------ padded batches


def inputs_of(*lengths: int, grid: tuple[int, int] = (0, 0)) -> list[ModelInputs]:
    return [ModelInputs(torch.arange(1, n + 1), torch.full((1, 3, 2, 2), n, dtype=torch.uint8), grid) for n in lengths]


def test_rows_are_padded_on_the_left_and_count_positions_from_their_own_beginning(checkpoints):
    prompt = load_prompt(checkpoints["internvl3"], engine="transformers")
    batch = prompt.collate(inputs_of(3, 1))
    letter = prompt.answer_tokens[0]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [letter, letter, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["pixels"][:, 0, 0, 0].tolist() == [3, 1]


def test_a_family_with_grids_leaves_positions_to_the_model(checkpoints):
    prompt = load_prompt(checkpoints["qwen2.5"], engine="transformers")
    inputs = inputs_of(2, 3, grid=(4, 6))
    inputs[0].input_ids[1] = prompt.image_token_id
    batch = prompt.collate(inputs)
    assert "position_ids" not in batch
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6]] * 2
    assert batch["mm_token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


# -------------------------------------------------------------------------------------------------------------- answers


def encode(text: str) -> list[int]:
    """One token a character, but `?A` is one token (9) and C is two."""
    return [
        number
        for piece in text.replace("?A", "\t").replace("C", "cc")
        for number in [9 if piece == "\t" else ord(piece)]
    ]


def test_answer_ids_are_the_tokens_after_the_prompt():
    assert answer_token_ids(encode, "say ", "tokenizer.json") == (ord("A"), ord("B"))


def test_a_letter_that_merges_with_the_prompt_is_refused():
    with pytest.raises(InputError, match=r"tokenizer\.json: the answer A is 0 tokens after the prompt"):
        answer_token_ids(encode, "which?", "tokenizer.json")


def test_a_letter_of_two_tokens_is_refused():
    with pytest.raises(InputError, match="the answer B is 2 tokens"):
        answer_token_ids(lambda text: encode(text.replace("B", "C")), "say ", "x")
