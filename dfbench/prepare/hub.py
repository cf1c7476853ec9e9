"""The released data set's files: how to fetch them, where people have put them, where clean annotations go.

Data set: huggingface.co/datasets/IntMeGroup/DFBench, 21 archives and six annotation files, about 121 GB.
"""

import filecmp
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dfbench.data.annotations import iter_rows
from dfbench.data.sources import CATALOGUE, DFBENCH
from dfbench.data.splits import SPLITS, TEST, TRAIN, VAL
from dfbench.errors import InputError

HUB_REPOSITORY = "IntMeGroup/DFBench"

_RELEASED_STEMS = {TRAIN: ("img_train_shuffled", "img_train"), TEST: ("img_test",)}
_SUFFIXES = (".json", ".jsonl")
_KEPT = ".released"


@dataclass(frozen=True)
class Target:
    """Where a trainer and an evaluator look for clean annotations; validation rows go beside the training rows.

    The suffix also says which of the two released shapes is read for it: their wording may differ.
    """

    train: Path
    test: Path

    @property
    def suffix(self) -> str:
        return self.test.suffix

    def path(self, split: str) -> Path:
        return {TRAIN: self.train, VAL: self.train.with_name(f"img_val{self.suffix}"), TEST: self.test}[split]


def folder_target(folder: Path) -> Target:
    """One folder for all models: `img_train.jsonl`, `img_val.jsonl`, `img_test.jsonl`, out of the released `.jsonl`."""
    return Target(folder / "img_train.jsonl", folder / "img_test.jsonl")


def find_released(suffix: str, targets: Iterable[Target], downloads: Path) -> dict[str, Path]:
    """The released training and test files in the shape of `suffix`, by split; a split that is nowhere is left out.

    Looked for in `downloads`, then in the folders of the targets, of which those of this suffix come first: first this
    shape, then the other one; shuffled before unshuffled. A clean file at a target's path is no released one.
    """
    targets = sorted(targets, key=lambda target: target.suffix != suffix)
    folders = dict.fromkeys((downloads, *(path.parent for target in targets for path in (target.train, target.test))))
    clean = {path.resolve() for target in targets for path in map(target.path, SPLITS) if is_clean(path)}
    found = {}
    for split, stems in _RELEASED_STEMS.items():
        candidates = (
            folder / f"{stem}{kept}{each_suffix}"
            for each_suffix in sorted(_SUFFIXES, key=lambda other: other != suffix)
            for folder in folders
            for stem in stems
            for kept in (_KEPT, "")
        )
        if path := next((path for path in candidates if path.is_file() and path.resolve() not in clean), None):
            found[split] = path
    return found


def is_clean(path: Path) -> bool:
    """Whether `AnnotationWriter` wrote an annotation file, by its first row: released ones have no list of images."""
    try:
        _, row = next(iter_rows(path), (None, {"images": []}))
    except InputError:
        return False
    return isinstance(row, dict) and isinstance(row.get("images"), list)


def keep_released(path: Path) -> Path:
    """Make room for a clean file: a released one at `path` is renamed `NAME.released.SUFFIX`. Returns where it is now.

    Raises InputError where a different file already has that name, rather than lose either.
    """
    if not path.exists() or is_clean(path):
        return path
    kept = path.with_name(f"{path.stem}{_KEPT}{path.suffix}")
    if kept.exists() and not filecmp.cmp(path, kept, shallow=False):
        raise InputError(f"{path}: this released file differs from {kept.name}. Move one of them to another folder.")
    return path.replace(kept)


def find_archives(folder: Path) -> dict[str, Path]:
    """Zip files in a folder and one level below, by their name in lower case; the upper level comes first."""
    found: dict[str, Path] = {}
    for pattern in ("*.[zZ][iI][pP]", "*/*.[zZ][iI][pP]"):
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                found.setdefault(path.name.lower(), path)
    return found


def archives_of(source: str, archives: Mapping[str, Path]) -> list[Path]:
    """The archives of one source: the published name, `SOURCE.zip`, or parts such as `SOURCE_000001-020000.zip`."""
    published = CATALOGUE[source].archive.lower() if source in CATALOGUE else ""
    pattern = re.compile(re.escape(source.lower()) + r"(_\d+-\d+)?\.zip")
    return [path for name, path in sorted(archives.items()) if name == published or pattern.fullmatch(name)]


def wanted_files(sources: Collection[str]) -> list[str]:
    """Names of the released files to fetch: the annotations, and the archives of these sources (of all where empty).

    Raises InputError for a source that is not published.
    """
    published = {source.name: source.archive for source in DFBENCH}
    if unknown := sorted(set(sources) - set(published)):
        raise InputError(f"--sources: {', '.join(unknown)} is not published; there are {', '.join(published)}.")
    annotations = [f"{stems[0]}{suffix}" for stems in _RELEASED_STEMS.values() for suffix in _SUFFIXES]
    return annotations + [archive for name, archive in published.items() if not sources or name in sources]


def download(folder: Path, sources: Collection[str], *, quiet: bool = False) -> None:
    """Fetch what `wanted_files` names into `folder`, going on from where an earlier download stopped.

    The server is huggingface.co or the one that the environment variable HF_ENDPOINT names. Raises InputError where
    it cannot be reached or refuses.
    """
    names = wanted_files(sources)

    import httpx  # both are slow to load, and only a download needs them
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
    reason = ""
    try:
        huggingface_hub.snapshot_download(
            HUB_REPOSITORY,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=[pattern for name in names for pattern in (name, f"*/{name}")],
        )
    except (OSError, httpx.HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    # With a server out of reach and anything in the folder, `snapshot_download` warns and returns.
    absent = [name for name in names if not any(path.is_file() for path in (folder / name, *folder.glob(f"*/{name}")))]
    if reason or absent:
        raise InputError(
            f"The download of {HUB_REPOSITORY} failed: {reason or ', '.join(absent) + ' did not come'}. Check the "
            "network or set HF_ENDPOINT to a mirror, then repeat the command: it goes on from there."
        )
