"""Base models that ms-swift may be handed: of a known kind, complete at first sight, and without code of their own."""

from pathlib import Path

from dfbench.errors import InputError, shorten
from dfbench.models.checkpoints import check_weights, read_config, refuse_remote_code, usable_checkpoint
from dfbench.models.registry import FAMILIES, Family, family_of, load_prompt


def checked_family(checkpoint: Path, expected: str | None = None) -> Family | None:
    """The family of a checkpoint; None for one that is not registered, which only ms-swift can judge.

    Raises InputError where the shell of one family was given a checkpoint of another.
    """
    model_type = read_config(checkpoint).get("model_type")
    family = family_of(model_type)
    if expected in FAMILIES and family is not FAMILIES[expected]:
        raise InputError(
            f"{checkpoint / 'config.json'}: model_type is {shorten(model_type)}; expected {expected}. Set MODEL to a "
            f"model of this folder's family, or train in the folder of that model."
        )
    return family


def usable_base(checkpoint: Path, family: Family | None) -> Path:
    """The folder to hand to ms-swift: an original InternVL checkpoint is converted, once, beside itself.

    Raises InputError where it brings code, has no weights in safetensors, or, of a family that we know, a config, a
    tokenizer or an image processor that cannot be used: ms-swift would end in a traceback, after half a minute.
    """
    folder = usable_checkpoint(checkpoint)
    refuse_remote_code(folder)
    check_weights(folder)
    if family:
        load_prompt(folder, engine="transformers")
    return folder
