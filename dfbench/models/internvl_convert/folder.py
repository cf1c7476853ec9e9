"""Writing a folder that appears only when it is complete, by one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfbench.errors import InputError


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the one lock for writing `target`, waiting for it if need be; it falls with the process, however that ends.

    Raises InputError where nothing can be written beside `target`.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        handle = _take(path)
    except OSError as error:
        raise InputError(
            target.parent,
            found=f"a folder that cannot be written ({error.strerror})",
            expected=f"room for the converted checkpoint {target.name}",
            remedy="convert into another place with scripts/convert_internvl.py --output and use that folder",
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


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


def _take(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        os.close(handle)  # its holder has removed the file meanwhile: take the new one
