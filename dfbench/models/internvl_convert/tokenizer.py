"""Fast tokenizer of an original InternVL checkpoint, without remote code, with the slow original's token ids.

The slow tokenizers (InternLM2's and InternLM3's own code over transformers 4.37's `PreTrainedTokenizer`) cut a text at
the added tokens and hand each stretch in between to SentencePiece by itself. Here the same is said in the terms of the
`tokenizers` library: the SentencePiece model becomes a BPE model with byte fallback, its settings become normalisers.
"""

import json
import re
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

IMAGE_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
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
    if (folder / "tokenizer.model").is_file():
        tokenizer = _from_sentencepiece(folder, config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _from_qwen2(folder, config)
    else:
        raise InputError(
            folder,
            found="no tokenizer.model and no vocab.json with merges.txt",
            expected="the tokenizer files of the original checkpoint",
            remedy="download them into the folder",
        )
    needed = (*IMAGE_TOKENS.values(), VIDEO_TOKEN, TURN_START, TURN_END)
    missing = [token for token in needed if tokenizer.token_to_id(token) is None]
    if missing:
        raise InputError(
            folder,
            found=f"a tokenizer without {missing[0]}",
            expected="InternVL's special tokens",
            remedy="use the tokenizer files of the InternVL checkpoint, not those of its language model",
        )
    return tokenizer


def _from_qwen2(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """transformers has this tokenizer itself, but counts added tokens on from the vocabulary, whatever ids they had."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer
    for index, entry in config.get("added_tokens_decoder", {}).items():
        if tokenizer.token_to_id(entry["content"]) != int(index):
            raise InputError(
                folder / "tokenizer_config.json",
                found=f"the added token {entry['content']!r} with the id {index}",
                expected=f"{tokenizer.token_to_id(entry['content'])}, counted on from vocab.json",
                remedy="use the tokenizer files of one and the same checkpoint",
            )
    return tokenizer


def _from_sentencepiece(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.model"
    proto = _read_model(path)
    added = _added_tokens(folder, config, proto)
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
    tokenizer.pre_tokenizer = _pre_tokenizer(proto, names, path)
    tokenizer.decoder = _decoder(proto)
    tokenizer.post_processor = _post_processor(folder, config, vocabulary)
    tokenizer.add_tokens([added[index] for index in sorted(added)])
    _check(tokenizer, proto, added, path)
    return tokenizer


def _read_model(path: Path) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(
            path, found="a broken file", expected="a SentencePiece model", remedy="download it again"
        ) from error
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    refused = {
        f"a model of type {TrainerSpec.ModelType.Name(trainer.model_type)}": trainer.model_type != TrainerSpec.BPE,
        f"the normalisation {normalizer.name}": bool(normalizer.precompiled_charsmap),
        "spaces that are not escaped": not normalizer.escape_whitespaces,
        "spaces as suffixes": trainer.treat_whitespace_as_suffix,
    }
    for found, is_so in refused.items():
        if is_so:
            raise InputError(
                path,
                found=found,
                expected="BPE without normalisation, as in InternLM's models",
                remedy="use a checkpoint of the InternVL2.5 or InternVL3 family",
            )
    return proto


def _added_tokens(folder: Path, config: dict[str, Any], proto: ModelProto) -> dict[int, AddedToken]:
    """Added tokens by id, as transformers 4.37 finds them: `added_tokens_decoder`, or else the two older files."""
    if "added_tokens_decoder" in config:
        entries = {int(index): entry for index, entry in config["added_tokens_decoder"].items()}
    else:
        path = folder / "added_tokens.json"
        entries = {index: {"content": token} for token, index in (read_json(path) if path.is_file() else {}).items()}
    known = {entry["content"] for entry in entries.values()}
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    special = [token for token in special_tokens(folder, config).values() if token is not None]
    for token in special + _additional_special_tokens(folder, config):
        if token not in known:
            if token not in pieces:
                raise InputError(
                    folder / "tokenizer_config.json",
                    found=f"the special token {token!r} without an id",
                    expected="it among added_tokens_decoder or the pieces of tokenizer.model",
                    remedy="download the tokenizer files again",
                )
            entries[pieces[token]] = {"content": token}
    # The slow tokenizer finds its added tokens in the raw text, whatever `normalized` says.
    for entry in entries.values():
        entry |= {"normalized": False, "special": entry.get("special", True)}
    return {index: AddedToken(**entry) for index, entry in entries.items()}


def special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str | None]:
    """The named special tokens as text; None where there is none."""
    path = folder / "special_tokens_map.json"
    named = (read_json(path) if path.is_file() else {}) | config
    tokens = {name: named.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}


def _additional_special_tokens(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / "special_tokens_map.json"
    named = (read_json(path) if path.is_file() else {}) | config
    tokens = named.get("additional_special_tokens", [])
    return [token["content"] if isinstance(token, dict) else token for token in tokens]


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


def _pre_tokenizer(proto: ModelProto, names: list[str], path: Path) -> pre_tokenizers.PreTokenizer:
    """Cuts out the user-defined pieces; and cuts apart a stretch that only looks like a name of the vocabulary.

    A stretch that is a name is looked up as a whole, so one that SentencePiece would not read so has to be cut: the
    name of a byte or of a control token spelled out (`<0x0A>`), a piece that no merges lead to.
    """
    pieces = zip(names, proto.pieces, strict=True)
    whole = sorted((name for name, p in pieces if p.type == _Piece.USER_DEFINED), key=len, reverse=True)
    cuts = _look_alikes(proto, names, path).items()
    parts = [rf"{re.escape(name[:cut])}(?={re.escape(name[cut:])}\z)" for name, cut in cuts]
    patterns = ["|".join(map(re.escape, whole)), rf"\A(?:{'|'.join(parts)})" if parts else ""]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns if p])


def _look_alikes(proto: ModelProto, names: list[str], path: Path) -> dict[str, int]:
    """Names that SentencePiece reads as several pieces -> a place between two of these, neither side being another."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    bare.normalizer_spec.add_dummy_prefix = bare.normalizer_spec.remove_extra_whitespaces = False
    own = [piece.piece for name, piece in zip(names, proto.pieces, strict=True) if piece.piece == name]
    read = zip(own, _library(bare, path).encode(own, out_type=str), strict=True)
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


def _post_processor(folder: Path, config: dict[str, Any], vocabulary: dict[str, int]) -> processors.TemplateProcessing:
    special = special_tokens(folder, config)
    bos = [special["bos_token"]] if config.get("add_bos_token", True) else []
    eos = [special["eos_token"]] if config.get("add_eos_token", False) else []
    return processors.TemplateProcessing(
        single=[*bos, "$A", *eos],
        pair=[*bos, "$A", "$B", *eos],
        special_tokens=[(token, vocabulary[token]) for token in bos + eos],
    )


def _check(tokenizer: Tokenizer, proto: ModelProto, added: dict[int, AddedToken], path: Path) -> None:
    """Hold the result to the SentencePiece library on every piece of the vocabulary, alone and in runs of forty."""
    pieces = [piece.piece.replace(SPACE, " ") for piece in proto.pieces]
    texts = pieces + ["".join(pieces[start : start + 40]) for start in range(0, len(pieces), 40)]
    cuts = re.compile("|".join(re.escape(token.content) for token in added.values()))
    texts = [text for text in texts if not cuts.search(text)]
    for text, found, expected in zip(
        texts, tokenizer.encode_batch(texts, add_special_tokens=False), _library(proto, path).encode(texts), strict=True
    ):
        if found.ids != expected:
            raise InputError(
                path,
                found=f"the text {shorten(text)} as {shorten(found.ids)}",
                expected=f"{shorten(expected)}, as the SentencePiece library has it",
                remedy="this model cannot be turned into a fast tokenizer",
            )


def _library(proto: ModelProto, path: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
        raise InputError(
            path, found=shorten(str(error)), expected="a SentencePiece model", remedy="download it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            path, found="no such file", expected="a file of the checkpoint", remedy="download it"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(path, found="no JSON", expected="a JSON object", remedy="download it again") from error
