"""Find the weights that training and merging wrote, so that the shells run one after the other without an argument."""

import logging
from collections.abc import Iterable
from pathlib import Path

from peft import PeftConfig

from dfbench.errors import InputError

logger = logging.getLogger(__name__)


def find_weights(model_path: Path | None, adapter: Path | None, trained: Path) -> tuple[Path, Path | None]:
    """(checkpoint, adapter or None) to score. What is not named is looked for in the folder `trained`: the newest
    merged model, or the newest adapter and its base model where that is newer. Raises InputError where there is
    nothing.
    """
    if model_path is not None:
        return model_path, adapter
    if adapter is None:
        merged = _newest(path.parent for path in trained.glob("*_merged/config.json"))
        if merged and not any(_written(other) > _written(merged) for other in _adapters(trained)):
            logger.info("model: %s", merged)
            return merged, None
        adapter = newest_adapter(trained)
    base = read_base_model(adapter)
    logger.info("model: %s with adapter %s", base, adapter)
    return base, adapter


def newest_adapter(trained: Path) -> Path:
    """The LoRA adapter that was written last into the folder. Raises InputError where there is none."""
    adapter = _newest(_adapters(trained))
    if adapter is None:
        raise InputError(
            trained,
            found="no merged model and no adapter",
            expected="the result of training",
            remedy="train first, or name the weights",
        )
    return adapter


def read_base_model(adapter: Path) -> Path:
    """The base checkpoint that an adapter's config names. Raises InputError where the adapter is unusable."""
    if not (adapter / "adapter_config.json").exists():
        raise InputError(
            adapter,
            found="no adapter_config.json",
            expected="a LoRA adapter folder",
            remedy="name the checkpoint-N folder",
        )
    try:
        return Path(PeftConfig.from_pretrained(adapter).base_model_name_or_path)
    except (OSError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            adapter, found=reason, expected="a LoRA adapter", remedy="train it again or name another one"
        ) from None


def _adapters(trained: Path) -> list[Path]:
    return [path.parent for path in trained.glob("*/adapter_config.json")]


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=_written, default=None)


def _written(folder: Path) -> float:
    return folder.stat().st_mtime
