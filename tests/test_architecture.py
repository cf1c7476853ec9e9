"""How the package is laid out: imports run one way, folders stay small and say what lives in them, tests mirror them.

Each rule is a function from a package's folder to the sentences that tell what breaks it. It is run on `dfbench`, and
on small packages that break it.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from dfbench.paths import REPOSITORY

PACKAGE = REPOSITORY / "dfbench"

ORDER = (
    "data",
    "prepare",
    "predictions",
    "fusion",
    "evaluation",
    "models",
    "scoring",
    "training",
    "features",
    "report",
    "demo",
    "benchmarks",
)
"""A folder imports from itself and from those before it. The modules beside the folders come before all of them."""

MAX_MODULES = 9

TESTS_OF_NO_MODULE = (
    "programs",  # the programs of the root and of scripts/, by what they do
    "fuzz",  # faults and random damaged input, of programs and modules
    "test_architecture.py",  # this one
    "test_gpu.py",  # what needs a CUDA device, of several modules
    "models/packed/test_padding.py",  # both families' batches, padded to one shape
    "report/test_browser.py",  # the report's script, in a browser
    "training/test_prompt_parity.py",  # the prompts of training and of scoring, side by side
)


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another; a folder's `__init__` has the folder's name."""

    importer: str
    imported: str
    line: int
    for_types: bool
    """Whether it stands under `if TYPE_CHECKING`, so that it never runs."""


def modules_of(package: Path) -> dict[str, Path]:
    """Files by dotted name, `dfbench.models.base`; those of `__init__` have the folder's name."""
    paths = {path.relative_to(package.parent).with_suffix(""): path for path in sorted(package.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imports_of(package: Path) -> list[Import]:
    """All imports inside the package, in functions too; names in strings (the registry's "module:Class") are none.

    The package's own `__init__` is left out: it offers to users what lies anywhere.
    """
    modules = modules_of(package)
    found = []
    for importer, path in modules.items():
        folder = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for node, for_types in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _names(node, folder):
                while name and name not in modules:
                    name = name.rpartition(".")[0]  # what is imported from a module is not one
                if name and package.name not in (name, importer):
                    found.append(Import(importer, name, node.lineno, for_types))
    return list(dict.fromkeys(found))


def _nodes(node: ast.AST, for_types: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    types_only = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        inside = for_types or (types_only and child in node.body)
        yield child, inside
        yield from _nodes(child, inside)


def _names(node: ast.AST, folder: str) -> list[str]:
    """The dotted names that a statement imports; `folder` is where its relative ones start."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = folder.split(".")[: len(folder.split(".")) + 1 - node.level] if node.level else []
    start = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{start}.{alias.name}" for alias in node.names]


def imports_against_the_order(package: Path) -> list[str]:
    ranks = {"": -1} | {folder: rank for rank, folder in enumerate(ORDER)}
    modules = modules_of(package)

    def folder_of(module: str) -> str:
        parts = modules[module].relative_to(package).parts
        return parts[0] if len(parts) > 1 else ""

    unknown = sorted({folder_of(module) for module in modules} - ranks.keys())
    return [f"{package.name}/{folder} has no place in the order of folders" for folder in unknown] + [
        f"{each.importer}, line {each.line}, imports {each.imported}, which comes after it"
        for each in imports_of(package)
        if ranks.get(folder_of(each.importer), len(ORDER)) < ranks.get(folder_of(each.imported), len(ORDER))
    ]


def circles(package: Path) -> list[str]:
    """The circles among modules, one at a time: the rest shows once it is gone."""
    graph: dict[str, set[str]] = {}
    for each in imports_of(package):
        if not each.for_types:
            graph.setdefault(each.importer, set()).add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def crowded_folders(package: Path) -> list[str]:
    counts = {folder: sum(path.name != "__init__.py" for path in folder.glob("*.py")) for folder in _folders(package)}
    return [f"{folder.name} has {count} modules" for folder, count in counts.items() if count > MAX_MODULES]


def folders_without_a_word(package: Path) -> list[str]:
    """Folders that do not say in their `__init__.py` what lives there."""
    silent = []
    for folder in _folders(package):
        path = folder / "__init__.py"
        if not (path.is_file() and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))):
            silent.append(f"{folder.name}/__init__.py is missing, or does not open with a docstring")
    return silent


def _folders(package: Path) -> list[Path]:
    return sorted({path.parent for path in package.rglob("*.py")} | {package})


def misplaced_tests(package: Path, tests: Path) -> list[str]:
    missing = []
    for path in sorted(tests.rglob("test_*.py")):
        name = path.relative_to(tests)
        module = package / name.with_name(name.name.removeprefix("test_"))
        if not module.is_file() and name.parts[0] not in TESTS_OF_NO_MODULE and str(name) not in TESTS_OF_NO_MODULE:
            missing.append(f"{name} tests {module.relative_to(package.parent)}, which does not exist")
    return missing


RULES = (imports_against_the_order, circles, crowded_folders, folders_without_a_word)


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule):
    assert not rule(PACKAGE)


def test_tests_mirror_the_package():
    assert not misplaced_tests(PACKAGE, REPOSITORY / "tests")


def test_imports_are_found_in_all_forms(make_package):
    package = make_package(
        {
            "io": "",
            "data/a": "",
            "data/b": "",
            "models/base": "from dfbench.data import a, b\nimport dfbench.io\nimport json",
            "models/packed/layers": "from .. import base\nfrom ..base import M\nfrom . import fp8\nfrom .fp8 import x",
            "models/packed/fp8": "def run():\n    from dfbench.io import write\n    name = 'dfbench.data.a:A'",
            "models/late": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dfbench import io\nelse:\n"
            "    import dfbench.data.b\n",
        }
    )
    (package / "models" / "packed" / "__init__.py").write_text('"""Fast."""\nfrom .layers import Layer\n')
    found = {(each.importer, each.imported, each.line, each.for_types) for each in imports_of(package)}
    assert found == {
        ("dfbench.models.base", "dfbench.data.a", 1, False),
        ("dfbench.models.base", "dfbench.data.b", 1, False),
        ("dfbench.models.base", "dfbench.io", 2, False),
        ("dfbench.models.packed", "dfbench.models.packed.layers", 2, False),
        ("dfbench.models.packed.layers", "dfbench.models.base", 1, False),
        ("dfbench.models.packed.layers", "dfbench.models.base", 2, False),
        ("dfbench.models.packed.layers", "dfbench.models.packed.fp8", 3, False),
        ("dfbench.models.packed.layers", "dfbench.models.packed.fp8", 4, False),
        ("dfbench.models.packed.fp8", "dfbench.io", 2, False),
        ("dfbench.models.late", "dfbench.io", 3, True),
        ("dfbench.models.late", "dfbench.data.b", 5, False),
    }
    assert not [broken for rule in RULES for broken in rule(package)]


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"data/a": "import dfbench.models.b", "models/b": ""}, "dfbench.data.a, line 1, imports dfbench.models.b"),
        (
            {"io": "def f():\n    from dfbench.data import a", "data/a": ""},
            "dfbench.io, line 2, imports dfbench.data.a",
        ),
        (
            {"scoring/a": "if TYPE_CHECKING:\n    from dfbench.training.b import B", "training/b": ""},
            "dfbench.scoring.a, line 2, imports dfbench.training.b",
        ),
        (
            {"data/a": "from dfbench.fusion import rule", "fusion/b": ""},
            "dfbench.data.a, line 1, imports dfbench.fusion",
        ),
        ({"attic/a": ""}, "dfbench/attic has no place in the order"),
    ],
)
def test_an_import_against_the_order_is_found(make_package, files, broken):
    (found,) = imports_against_the_order(make_package(files))
    assert found.startswith(broken)


def test_a_circle_is_found(make_package):
    files = {
        "models/a": "import dfbench.models.b",
        "models/b": "def late():\n    import dfbench.models.packed.c",
        "models/packed/c": "from dfbench.models.a import A",
    }
    (found,) = circles(make_package(files))
    assert set(found.split(" <- ")) == {"dfbench.models.a", "dfbench.models.b", "dfbench.models.packed.c"}
    assert circles(make_package({"io": "import dfbench.io"})) == ["dfbench.io <- dfbench.io"]


def test_a_circle_that_only_types_close_is_none(make_package):
    files = {"models/a": "import dfbench.models.b", "models/b": "if TYPE_CHECKING:\n    import dfbench.models.a"}
    assert not circles(make_package(files))


def test_a_crowded_folder_is_found(make_package):
    assert not crowded_folders(make_package({f"models/packed/m{n}": "" for n in range(9)}))
    assert crowded_folders(make_package({"models/packed/m9": ""})) == ["packed has 10 modules"]


def test_a_folder_that_does_not_say_what_it_holds_is_found(make_package):
    package = make_package({"data/a": "", "models/packed/c": ""})
    (package / "data" / "__init__.py").unlink()
    (package / "models" / "packed" / "__init__.py").write_text("# Fast.\n")
    assert [found.split()[0] for found in folders_without_a_word(package)] == ["data/__init__.py", "packed/__init__.py"]


def test_a_test_of_a_missing_module_is_found(make_package, tmp_path):
    package = make_package({"io": "", "models/packed/layers": ""})
    names = ("test_io.py", "models/packed/test_layers.py", "programs/test_x.py", "test_gpu.py", "models/conftest.py")
    for name in (*names, "test_files.py", "models/test_layers.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).touch()
    assert misplaced_tests(package, tmp_path / "tests") == [
        "models/test_layers.py tests dfbench/models/layers.py, which does not exist",
        "test_files.py tests dfbench/files.py, which does not exist",
    ]


@pytest.fixture
def make_package(tmp_path) -> Callable[[dict[str, str]], Path]:
    """A function that writes modules ("models/base" -> its text) into a small package of this layout."""

    def write(files: dict[str, str]) -> Path:
        package = tmp_path / "dfbench"
        for name, text in files.items():
            path = package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            for folder in path.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").write_text('"""What lives here."""\n')
        return package

    return write
