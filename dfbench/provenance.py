"""What made a file: versions and commit, for the metadata JSON beside it. Imports nothing heavy."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import dfbench
from dfbench.paths import REPOSITORY


def describe_software(packages: Sequence[str]) -> dict[str, Any]:
    """{"versions": of DFBench, Python and `packages`, "git_commit": of the code that runs}."""
    versions = {"dfbench": dfbench.__version__, "python": platform.python_version()}
    return {"versions": versions | {name: version(name) for name in packages}, "git_commit": git_commit()}


def git_commit() -> str | None:
    """Commit of the code that runs, with `+` where files differ from it; None outside a git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if commit else None
    except FileNotFoundError:
        return None
