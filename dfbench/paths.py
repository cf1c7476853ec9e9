"""Where things lie: in the repository, and what is kept for later runs."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"


def cache_folder() -> Path:
    """`~/.cache/dfbench`, or below `$XDG_CACHE_HOME` where that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfbench"
