"""Fast tokenizer of an original InternVL checkpoint, without remote code, with the slow original's token ids.

The slow tokenizers (InternLM2's and InternLM3's own code over transformers 4.37's `PreTrainedTokenizer`) cut a text at
the added tokens and hand each stretch in between to SentencePiece by itself. Here the same is said in the terms of the
`tokenizers` library: the SentencePiece model becomes a BPE model with byte fallback, its settings become normalisers.
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import Qwen2Tokenizer

from dfbench.errors import InputError, shorten
from dfbench.models.internvl_convert.config import read_json

IMAGE_TOKENS = {"context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>", "start_image_token": "<img>"}
VIDEO_TOKEN = "<quad>"
"""What stands for a video in a prompt. The published native folders add a token `<video>` for it, which the original
does not have and whose id lies beyond the embedding; an unused one of the original's keeps all ids as they were.
"""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

SPACE = "▁"
_Piece = ModelProto.SentencePiece


def build_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of the original checkpoint in `folder`: SentencePiece (InternLM) or byte-level BPE (Qwen2).

    Raises InputError where there is none, or one that this cannot reproduce exactly.
    """
    config = read_json(folder / "tokenizer_config.json")
    added = {int(index): entry for index, entry in config.get("added_tokens_decoder", {}).items()}
    if (folder / "tokenizer.model").is_file():
        tokenizer = _from_sentencepiece(folder / "tokenizer.model", config, added)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _from_qwen2(folder, added)
    else:
        raise InputError(f"{folder}: neither tokenizer.model nor vocab.json with merges.txt in it. Download them.")
    needed = (*IMAGE_TOKENS.values(), VIDEO_TOKEN, TURN_START, TURN_END)
    missing = [token for token in needed if tokenizer.token_to_id(token) is None]
    if missing:
        raise InputError(
            f"{folder}: its tokenizer has no {missing[0]}. "
            f"Use the tokenizer files of the InternVL checkpoint, not those of its language model."
        )
    return tokenizer


def _from_qwen2(folder: Path, added: Mapping[int, dict[str, Any]]) -> Tokenizer:
    """transformers has this tokenizer itself, but counts added tokens on from the vocabulary, whatever ids they had."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer
    for index, entry in added.items():
        counted = tokenizer.token_to_id(entry["content"])
        if counted != index:
            found = f"the added token {entry['content']!r} has the id {index}; expected {counted} by vocab.json"
            raise InputError(f"{folder / 'tokenizer_config.json'}: {found}. Download the tokenizer files again.")
    return tokenizer


def _from_sentencepiece(path: Path, config: Mapping[str, Any], entries: Mapping[int, dict[str, Any]]) -> Tokenizer:
    proto, library = _read_model(path)
    # The slow tokenizer finds its added tokens in the raw text, whatever `normalized` says.
    added = {index: AddedToken(**entry | {"normalized": False}) for index, entry in entries.items()}
    names = [added[index].content if index in added else piece.piece for index, piece in enumerate(proto.pieces)]
    vocabulary = {name: index for index, name in enumerate(names)}
    vocabulary |= {token.content: index for index, token in added.items()}
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=_merges(proto, names),
            unk_token=names[proto.trainer_spec.unk_id],
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
            ignore_merges=True,  # so that a user-defined piece, cut out by the pre-tokeniser, is looked up as a whole
        )
    )
    tokenizer.normalizer = _normalizer(proto, names)
    tokenizer.pre_tokenizer = _pre_tokenizer(proto, names)
    tokenizer.decoder = _decoder(proto)
    bos = [special_tokens(config)["bos_token"]] if config.get("add_bos_token", True) else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A"], pair=[*bos, "$A", "$B"], special_tokens=[(token, vocabulary[token]) for token in bos]
    )
    tokenizer.add_tokens([added[index] for index in sorted(added)])
    _check(tokenizer, proto, library, added, path)
    return tokenizer


def _read_model(path: Path) -> tuple[ModelProto, SentencePieceProcessor]:
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        if proto.trainer_spec.model_type != TrainerSpec.BPE or proto.normalizer_spec.precompiled_charsmap:
            raise InputError(f"{path}: not BPE without normalisation. Use a model of InternVL2.5 or InternVL3.")
        library = SentencePieceProcessor(model_proto=proto.SerializeToString())
    except (DecodeError, RuntimeError) as error:
        raise InputError(f"{path}: not a complete SentencePiece model. Download it again.") from error
    return proto, library


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens of a tokenizer's config as text."""
    named = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in named.items() if token}


def _merges(proto: ModelProto, names: list[str]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, best score first: SentencePiece merges what makes the best piece."""
    pieces = zip(proto.pieces, names, strict=True)
    normal = {name: piece.score for piece, name in pieces if piece.type == _Piece.NORMAL and piece.piece == name}
    merges = []
    for piece in sorted(normal, key=lambda piece: -normal[piece]):
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
    return merges


def _normalizer(proto: ModelProto, names: list[str]) -> normalizers.Normalizer:
    """SentencePiece's normaliser; it runs on each stretch between added tokens by itself, as there.

    A user-defined piece that an added token renames (`[UNUSED_TOKEN_146]` is `<|im_start|>`) still stands for its id.
    """
    pieces = zip(proto.pieces, names, strict=True)
    renamed = {p.piece: name for p, name in pieces if p.type == _Piece.USER_DEFINED and p.piece != name}
    steps = [normalizers.Replace(placeholder, name) for placeholder, name in renamed.items()]
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), "")]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _pre_tokenizer(proto: ModelProto, names: list[str]) -> pre_tokenizers.PreTokenizer:
    """Cuts out the user-defined pieces; and cuts apart a stretch that only looks like a name of the vocabulary.

    A stretch that is a name is looked up as a whole, so one that SentencePiece would not read so has to be cut: the
    name of a byte or of a control token spelled out (`<0x0A>`), a piece that no merges lead to.
    """
    pieces = zip(names, proto.pieces, strict=True)
    whole = sorted((name for name, p in pieces if p.type == _Piece.USER_DEFINED), key=len, reverse=True)
    cuts = _look_alikes(proto, names).items()
    parts = [rf"{re.escape(name[:cut])}(?={re.escape(name[cut:])}\z)" for name, cut in cuts]
    patterns = ["|".join(map(re.escape, whole)), rf"\A(?:{'|'.join(parts)})" if parts else ""]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns if p])


def _look_alikes(proto: ModelProto, names: list[str]) -> dict[str, int]:
    """Names that SentencePiece reads as several pieces -> a place between two of these, neither side being another."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    bare.normalizer_spec.add_dummy_prefix = bare.normalizer_spec.remove_extra_whitespaces = False
    own = [piece.piece for name, piece in zip(names, proto.pieces, strict=True) if piece.piece == name]
    library = SentencePieceProcessor(model_proto=bare.SerializeToString())
    read = zip(own, library.encode(own, out_type=str), strict=True)
    alike = {name: pieces for name, pieces in read if pieces != [name] and "".join(pieces) == name}
    cuts = {}
    for name, pieces in alike.items():
        ends = accumulate(map(len, pieces[:-1]))
        cuts[name] = next((end for end in ends if not {name[:end], name[end:]} & alike.keys()), 0)
    return {name: cut for name, cut in cuts.items() if cut}


def _decoder(proto: ModelProto) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _check(
    tokenizer: Tokenizer, proto: ModelProto, library: SentencePieceProcessor, added: dict[int, AddedToken], path: Path
) -> None:
    """Compare the result with the SentencePiece library on every piece of the vocabulary, alone and in forties."""
    pieces = [piece.piece.replace(SPACE, " ") for piece in proto.pieces]
    texts = pieces + ["".join(pieces[start : start + 40]) for start in range(0, len(pieces), 40)]
    cuts = re.compile("|".join(re.escape(token.content) for token in added.values()))
    texts = [text for text in texts if not cuts.search(text)]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, found, expected in zip(texts, encoded, library.encode(texts), strict=True):
        if found.ids != expected:
            raise InputError(
                f"{path}: {shorten(text)} becomes {shorten(found.ids)} in a fast tokenizer, but {shorten(expected)} in "
                f"SentencePiece. This checkpoint cannot be converted."
            )
