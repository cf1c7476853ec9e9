"""The released data set's files: how to fetch them, where people have put them, where clean annotations go.

Data set: huggingface.co/datasets/IntMeGroup/DFBench, 21 archives and six annotation files, about 121 GB.
"""

import filecmp
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dfbench.data.json_rows import iter_rows
from dfbench.data.sources import CATALOGUE, DFBENCH
from dfbench.errors import InputError

HUB_REPOSITORY = "IntMeGroup/DFBench"

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
"""The clean files. The release has no validation rows: they are split off the training rows."""

_RELEASED_STEMS = {TRAIN: ("img_train_shuffled", "img_train"), TEST: ("img_test",)}
_SUFFIXES = (".json", ".jsonl")
_KEPT = ".released"


@dataclass(frozen=True)
class Target:
    """Where one model's trainer and evaluator look for annotations: FOLDER/STEM.SUFFIX for each split.

    The suffix also says which of the two released shapes is read for it: their wording may differ.
    """

    folder: Path
    suffix: str
    train_stem: str

    def path(self, split: str) -> Path:
        stem = self.train_stem if split == TRAIN else f"img_{split}"
        return self.folder / f"{stem}{self.suffix}"

    @property
    def paths(self) -> list[Path]:
        return [self.path(split) for split in SPLITS]


def model_targets(repository: Path) -> tuple[Target, ...]:
    """The three model folders, with the names that their shells and evaluators have as defaults."""
    return (
        Target(repository / "qwen2.5" / "datasets", ".json", "img_train_shuffled"),
        Target(repository / "internvl2.5" / "data", ".jsonl", "img_train_shuffled"),
        Target(repository / "internvl3" / "data", ".jsonl", "img_train_shuffled"),
    )


def folder_target(folder: Path) -> Target:
    """One folder for all models: `img_train.jsonl`, `img_val.jsonl`, `img_test.jsonl`, out of the released `.jsonl`."""
    return Target(folder, ".jsonl", "img_train")


# ---------------------------------------------------------------------------------------------------------- annotations


def find_released(target: Target, others: Iterable[Target], downloads: Path) -> dict[str, Path]:
    """The released training and test files for a target, by split; a split that is nowhere is left out.

    Looked for in `downloads`, then in the target's own folder, then in the other targets': first the target's own
    shape, then the other one; shuffled before unshuffled. Clean files at any target's path are no released ones.
    """
    targets = (target, *(other for other in others if other != target))
    folders = dict.fromkeys((downloads, *(each.folder for each in targets)))
    own_files = {path.resolve() for each in targets for path in each.paths}
    found = {}
    for split in (TRAIN, TEST):
        for path in _candidates(split, target.suffix, folders):
            if path.is_file() and not (path.resolve() in own_files and is_clean(path)):
                found[split] = path
                break
    return found


def _candidates(split: str, suffix: str, folders: Iterable[Path]) -> Iterable[Path]:
    for each_suffix in sorted(_SUFFIXES, key=lambda other: other != suffix):
        for folder in folders:
            for stem in _RELEASED_STEMS[split]:
                yield folder / f"{stem}{_KEPT}{each_suffix}"
                yield folder / f"{stem}{each_suffix}"


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
        raise InputError(
            path,
            found=f"a released annotation file that differs from the one kept as {kept.name}",
            expected="one of them",
            remedy="move one of the two to another folder",
        )
    return path.replace(kept)


# ------------------------------------------------------------------------------------------------------------- archives


def find_archives(folder: Path) -> dict[str, Path]:
    """Zip files in a folder and one level below, by their name in lower case; the upper level comes first."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for each in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for name in sorted(os.listdir(each)):  # names only: the extracted images may lie in the same folders
            if name.lower().endswith(".zip") and (each / name).is_file():
                found.setdefault(name.lower(), each / name)
    return found


def archives_of(source: str, archives: Mapping[str, Path]) -> list[Path]:
    """The archives of one source: the published name, `SOURCE.zip`, or parts such as `SOURCE_000001-020000.zip`."""
    published = CATALOGUE[source].archive.lower() if source in CATALOGUE else ""
    pattern = re.compile(re.escape(source.lower()) + r"(_\d+-\d+)?\.zip")
    return [path for name, path in sorted(archives.items()) if name == published or pattern.fullmatch(name)]


# ------------------------------------------------------------------------------------------------------------- download


def wanted_files(sources: Collection[str]) -> list[str]:
    """Names of the released files to fetch: the annotations, and the archives of these sources (of all where empty).

    Raises InputError for a source that is not published.
    """
    published = {source.name: source.archive for source in DFBENCH}
    if unknown := sorted(set(sources) - set(published)):
        raise InputError(
            "--sources",
            found=", ".join(unknown),
            expected=f"some of {', '.join(published)}",
            remedy="correct the name, or download without it",
        )
    annotations = [f"{_RELEASED_STEMS[split][0]}{suffix}" for split in (TRAIN, TEST) for suffix in _SUFFIXES]
    return annotations + [archive for name, archive in published.items() if not sources or name in sources]


def download(folder: Path, sources: Collection[str], *, quiet: bool = False) -> None:
    """Fetch what `wanted_files` names into `folder`, going on from where an earlier download stopped.

    The server is huggingface.co or the one that the environment variable HF_ENDPOINT names. Raises InputError in one
    line where it cannot be reached or refuses.
    """
    import httpx  # both are slow to load, and only a download needs them
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    names = wanted_files(sources)
    if quiet:
        disable_progress_bars()
    try:
        huggingface_hub.snapshot_download(
            HUB_REPOSITORY,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=[pattern for name in names for pattern in (name, f"*/{name}")],
        )
    except (OSError, httpx.HTTPError) as error:
        found = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _download_error(found) from None
    # With a server out of reach and anything in the folder, `snapshot_download` warns and returns.
    if absent := [name for name in names if not _is_in(folder, name)]:
        raise _download_error(f"that {', '.join(absent)} did not come")


def _is_in(folder: Path, name: str) -> bool:
    """Whether a file lies in a folder or one level below, where the patterns of the download put it."""
    return (folder / name).is_file() or any(path.is_file() for path in folder.glob(f"*/{name}"))


def _download_error(found: str) -> InputError:
    return InputError(
        f"download of {HUB_REPOSITORY}",
        found=found,
        expected="the data set's files",
        remedy="check the network or set HF_ENDPOINT to a mirror, then repeat the command: it goes on from there",
    )
