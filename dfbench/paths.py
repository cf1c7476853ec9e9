"""Where things lie: in the repository, and what is kept for later runs."""

import os
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"


def cache_folder() -> Path:
    """`~/.cache/dfbench`, or below `$XDG_CACHE_HOME` where that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfbench"


def result_csvs(folder: Path) -> list[Path]:
    """The CSVs of a folder, without those that lie beside another: errors, warnings, and parts of a run under way."""
    return sorted(path for path in folder.glob("*.csv") if not _COMPANION.search(path.name))


_COMPANION = re.compile(r"\.(errors|warnings|part\d+)\.csv$")
