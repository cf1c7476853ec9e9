"""Writing a folder that appears only when it is complete, by one process at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dfbench.errors import InputError
from dfbench.io import file_lock


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the one lock for writing `target`, waiting for it if need be; it falls with the process, however that ends.

    Raises InputError where nothing can be written beside `target`.
    """
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(target, wait=True))
        except OSError as error:
            raise InputError(
                f"{target.parent} cannot be written ({error.strerror}), and the converted checkpoint {target.name} "
                "belongs there. Convert into another place with scripts/convert_internvl.py --output and use that."
            ) from error
        yield


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write into, renamed to `target` at the end; nothing is left of it after an error.

    The caller holds the lock, and `target` is new or empty. What a killed run left is removed first.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
