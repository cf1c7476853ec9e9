"""The fast tokenizer of original InternVL checkpoints, held to the SentencePiece library and the slow one's rules."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from tokenizers import Tokenizer

from dfbench.errors import InputError
from dfbench.models.internvl_convert.tokenizer import build_tokenizer
from dfbench.paths import REPOSITORY

ORACLE = REPOSITORY / "tests" / "fixtures" / "internvl_oracle"

TEXTS = (
    "",
    " ",
    "A",
    "B",
    "Is this a real image or a generated image? A: 'real' or B: 'generated'. Just answer with A or B.",
    "  two leading, two  inside, two trailing  ",
    "tab\tnewline\nboth\r\n\n\n  \t indented\u3000wide\u00a0hard",
    "这张图片是真实的还是生成的？请回答 A 或 B。",
    "混 mixed 中文 and English，标点。",
    "😀 👩‍👩‍👧‍👦 🇨🇳 ❤️",
    "e\u0301 é ﬁ Å \u200b\ufeff \ufffd \x00\x7f",
    "\U0010ffff\ue000𝔸क्षिﷺ",
    "<s>bos</s> and <unk> and <|im_start|>user\n",
    "<|im_end|><|im_start|>assistant\n <|plugin|> <|interpreter|>x<|action_start|> y <|action_end|>",
    "<img><IMG_CONTEXT><IMG_CONTEXT></img>\n<quad></quad><ref></ref><box></box>",
    "almost <s <|im_start| <IMG_CONTEXT <|im_start |> </s",
    "<image>",
    "<video>",
    "<0x0A>",
    " <0x0A>",
    "<0xE4><0xBD><0xA0> <0xGG>",
    "[UNUSED_TOKEN_137]",
    "x[UNUSED_TOKEN_138] y[UNUSED_TOKEN_139",
    "[UNUSED_TOKEN_146]system\n[UNUSED_TOKEN_145]",  # other names of <|im_start|> and <|im_end|>
    "▁lower▁bar▁",
    "▁▁▁   ▁",
    "-" * 63 + "=" * 33 + "aaaa" * 9,
    "3.14159 1,280 2024-05-06",
)


class SlowTokenizer:
    """What InternLM2's own tokenizer does under transformers 4.37: cut at the added tokens (anywhere in the raw text,
    the longest first), hand each stretch by itself to SentencePiece, look the pieces up, put BOS in front.
    """

    def __init__(self, folder: Path) -> None:
        decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        self.added = {entry["content"]: int(index) for index, entry in decoder.items()}
        self.cuts = re.compile(f"({'|'.join(re.escape(t) for t in sorted(self.added, key=len, reverse=True))})")
        self.pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    def __call__(self, text: str) -> list[int]:
        ids = [self.pieces.bos_id()]
        for stretch in filter(None, self.cuts.split(text)):
            if stretch in self.added:
                ids.append(self.added[stretch])
            else:
                ids += [self.pieces.piece_to_id(piece) for piece in self.pieces.encode(stretch, out_type=str)]
        return ids


def settings(dummy_prefix: bool = False, remove_extra: bool = False) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.normalizer_spec.add_dummy_prefix = dummy_prefix
        model.normalizer_spec.remove_extra_whitespaces = remove_extra

    return change


def folder_with(folder: Path, change: Callable[[ModelProto], None]) -> Path:
    """The tokenizer files, with another SentencePiece model."""
    folder.mkdir()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        shutil.copyfile(ORACLE / "model" / name, folder / name)
    model = ModelProto()
    model.ParseFromString((ORACLE / "model" / "tokenizer.model").read_bytes())
    change(model)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


@pytest.fixture(
    scope="module",
    params=[(False, False), (True, False), (False, True), (True, True)],
    ids=["as it is", "dummy prefix", "extra spaces removed", "both"],
)
def folder(request, tmp_path_factory) -> Path:
    return folder_with(tmp_path_factory.mktemp("tokenizer") / "files", settings(*request.param))


@pytest.fixture(scope="module")
def fast(folder) -> Tokenizer:
    return build_tokenizer(folder)


@pytest.fixture(scope="module")
def slow(folder) -> SlowTokenizer:
    return SlowTokenizer(folder)


def test_the_ids_of_upstream_are_met():
    tokenizer = build_tokenizer(ORACLE / "model")
    expected = json.loads((ORACLE / "expected.json").read_text())
    for token, index in expected["token_ids"].items():
        assert tokenizer.token_to_id(token) == index
    assert tokenizer.get_vocab_size() == 1621
    for row in expected["images"]:
        # The ids decode to the prompt; encoding that gives upstream's ids again, BOS included.
        text = tokenizer.decode(row["input_ids"], skip_special_tokens=False)
        assert text.startswith("<s><|im_start|>system\n你是由上海人工智能实验室")
        assert text.count("<IMG_CONTEXT>") == 1280
        assert tokenizer.encode(text.removeprefix("<s>")).ids == row["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_all_kinds(fast, slow, text):
    assert fast.encode(text).ids == slow(text)


def test_every_piece_alone_and_in_context(fast, slow):
    for index in range(slow.pieces.get_piece_size()):
        piece = slow.pieces.id_to_piece(index).replace("▁", " ")
        for text in (piece, f"x{piece}", f"{piece}{piece}", f"<s>{piece}<s>"):
            assert fast.encode(text).ids == slow(text), text


def test_random_texts(fast, slow):
    rng = random.Random(20240506)
    for text in (random_text(rng, slow) for _ in range(1500)):
        assert fast.encode(text).ids == slow(text), text


def random_text(rng: random.Random, slow: SlowTokenizer) -> str:
    def pieces() -> str:
        indices = (rng.randrange(259, slow.pieces.get_piece_size()) for _ in range(rng.randint(1, 8)))
        return "".join(slow.pieces.id_to_piece(index) for index in indices).replace("▁", " ")

    def characters() -> str:
        low, high = rng.choice([(0x20, 0x7E), (0x20, 0x7E), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF), (1, 0xD7FF)])
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))

    def runs() -> str:
        return rng.choice(" \t\n-=a▁") * rng.randint(1, 40)

    def known() -> str:
        return rng.choice([*slow.added, *TEXTS])

    return "".join(rng.choice([pieces, characters, runs, known])() for _ in range(rng.choice([1, 1, 2, 5, 9])))


def test_a_piece_that_no_merges_lead_to_is_read_as_the_library_reads_it(tmp_path):
    def change(model: ModelProto) -> None:
        next(piece for piece in model.pieces if piece.piece == "tion").piece = "qjx"  # neither "qj" nor "jx" is a piece

    folder = folder_with(tmp_path / "files", change)
    slow, fast = SlowTokenizer(folder), build_tokenizer(folder)
    assert slow("qjx") == [1, *(slow.pieces.piece_to_id(letter) for letter in "qjx")]
    for text in ("qjx", " qjx", "a qjxb", "qjx<s>qjx", "qjx[UNUSED_TOKEN_137]qjx"):
        assert fast.encode(text).ids == slow(text)


def test_decoding_gives_the_text_back(fast):
    text = "A photo\n真实 😀 of\tit."
    assert fast.decode(fast.encode(text).ids) == text
    assert fast.decode(fast.encode("<|im_start|>x").ids, skip_special_tokens=True) == "x"


def unigram(model: ModelProto) -> None:
    model.trainer_spec.model_type = TrainerSpec.UNIGRAM


def normalised(model: ModelProto) -> None:
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = b"anything"


@pytest.mark.parametrize("change", [unigram, normalised])
def test_models_that_cannot_be_met_exactly_are_refused(tmp_path, change):
    with pytest.raises(InputError, match=r"tokenizer\.model: not BPE without normalisation"):
        build_tokenizer(folder_with(tmp_path / "files", change))


def test_broken_and_missing_files(tmp_path):
    folder = folder_with(tmp_path / "files", settings())
    model = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(model[: len(model) // 2])
    with pytest.raises(InputError, match=r"tokenizer\.model: not a complete SentencePiece model"):
        build_tokenizer(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"neither tokenizer\.model nor vocab\.json"):
        build_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer_config\.json: no such file"):
        build_tokenizer(folder)


def test_the_tokenizer_of_the_language_model_alone_is_refused(tmp_path):
    folder = folder_with(tmp_path / "files", settings())
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"] = {i: t for i, t in config["added_tokens_decoder"].items() if int(i) < 1612}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="its tokenizer has no <IMG_CONTEXT>"):
        build_tokenizer(folder)
