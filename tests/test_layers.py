"""Imports point down only, and the other rules about files that the tree itself can show."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("groupfx", "passes")
USERS = ("tests", "examples")
MAX_LINES = 500
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

# From the bottom up. A name is a module or a subpackage of groupfx; `groupfx` is the package's own
# __init__, which re-exports from everywhere, so that nothing below it may import from it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "schema", "version"),
    ("plan",),
    ("folding",),
    ("parallel",),
    ("nn",),
    ("convs", "learned"),
    (
        "emit",
        "files",
        "merging",
        "report",
        "rewriting",
        "running",
        "state",
        "targets",
        "toolchains",
        "tracing",
        "verify",
    ),
    ("deploy", "passes"),
    ("tuning",),
    ("api", "testing"),
    ("fleet",),
    ("page",),
    ("cli",),
    ("docs",),
    ("__main__", "groupfx"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Side by side on one level, and not to know each other.
WINGS = frozenset({"deploy", "passes"})

# Packages of others that only one room may import; a plan is integers, without torch.
ONLY_IN = {
    "distributed": {"fleet"},
    "jinja2": {"emit", "page"},
    "matplotlib": {"report"},
    "onnx": {"deploy", "testing", "tuning"},
    "onnx_ir": {"deploy", "testing", "tuning"},
    "onnxruntime": {"deploy", "testing", "tuning"},
    "onnxscript": {"deploy", "testing"},
    "openvino": {"testing", "tuning"},
    "psutil": {"fleet"},
    "rich": {"cli"},
    "ruff": {"emit"},
    "typer": {"cli", "docs"},
    "torch": set(LEVEL) - {"errors", "folding", "parallel", "schema", "version", "plan"},
}


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute dotted name, at a line of a file."""

    path: Path
    line: int
    module: str


def python_files(root: Path, folders: Iterable[str]) -> list[Path]:
    """Return the .py files under `folders`, each once: groupfx/passes is only a link to passes."""
    link = root / "groupfx" / "passes"
    found = (path for folder in folders for path in (root / folder).rglob("*.py"))
    return sorted({path for path in found if link not in path.parents})


def module_name(root: Path, path: Path) -> str:
    """Return the dotted name under which `path` is imported."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[0] == "passes":
        parts.insert(0, "groupfx")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def component(module: str) -> str:
    """Return the name in LAYERS that a module of groupfx belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "groupfx"


def imports(root: Path, path: Path) -> Iterator[Import]:
    """Yield every import of a file, also inside functions; `from groupfx import x` is groupfx.x."""
    own = module_name(root, path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        if not isinstance(node, ast.ImportFrom):
            continue
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*(above if node.level else []), *([node.module] if node.module else [])])
        if base != "groupfx":
            yield Import(path, node.lineno, base)
            continue
        for alias in node.names:
            known = alias.name in LEVEL or (root / "groupfx" / f"{alias.name}.py").exists()
            yield Import(path, node.lineno, f"groupfx.{alias.name}" if known else "groupfx")


def problem_with(found: Import, importer: str) -> str | None:
    """Say what is wrong when `importer`, a name in LAYERS, imports `found`."""
    top = found.module.partition(".")[0]
    if top != "groupfx":
        allowed = ONLY_IN.get(top)
        if allowed is None or importer in allowed:
            return None
        return f"imports {top}: not in {importer}"
    imported = component(found.module)
    if imported not in LEVEL:
        return f"imports {found.module}: not in LAYERS"
    if LEVEL[imported] > LEVEL[importer]:
        return f"imports {found.module}: {imported} is above {importer}"
    if {imported, importer} == WINGS:
        return f"imports {found.module}: {imported} and {importer} are separate wings"
    return None


def first_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return the names along one cycle of a graph, its start repeated at the end, or nothing."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for after in sorted(edges.get(name, ())):
            cycle = visit(after, [*trail, name])
            if cycle:
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(edges) if (cycle := visit(name, []))), [])


def import_problems(root: Path) -> list[str]:
    """Return one line for every import that breaks the layers, and one for the first cycle."""
    problems = []
    edges: dict[str, set[str]] = {}
    for path in python_files(root, SOURCES):
        importer = component(module_name(root, path))
        if importer not in LEVEL:
            problems.append(f"{path.relative_to(root)}: {importer} is not in LAYERS")
            continue
        for found in imports(root, path):
            problem = problem_with(found, importer)
            if problem:
                problems.append(f"{path.relative_to(root)}:{found.line}: {problem}")
            imported = component(found.module)
            if found.module.partition(".")[0] == "groupfx" and imported != importer:
                edges.setdefault(importer, set()).add(imported)
    cycle = first_cycle(edges)
    if cycle:
        problems.append("cycle: " + " -> ".join(cycle))
    return problems


def bare_pass_problems(root: Path) -> list[str]:
    """Return one line for every import of passes that is not by its name in groupfx."""
    return [
        f"{path.relative_to(root)}:{found.line}: import groupfx.passes, or classes exist twice"
        for path in python_files(root, (*SOURCES, *USERS))
        for found in imports(root, path)
        if found.module.partition(".")[0] == "passes"
    ]


def file_problems(root: Path) -> list[str]:
    """Return one line for every file that is too long or has a name that says nothing."""
    problems = []
    for path in python_files(root, (*SOURCES, *USERS)):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            problems.append(f"{path.relative_to(root)}: {lines} lines, at most {MAX_LINES}")
        vague = VAGUE_NAMES & {*path.relative_to(root).with_suffix("").parts}
        problems.extend(f"{path.relative_to(root)}: named {name}" for name in sorted(vague))
    return problems


def doubled_classes(root: Path) -> list[str]:
    """Return one line for every class of the tests whose name is that of another one's."""
    places: dict[str, list[str]] = {}
    for path in python_files(root, ("tests",)):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(root)))
    return [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]


def test_imports_point_down() -> None:
    assert python_files(ROOT, SOURCES), "no source file found: the checker looked at nothing"
    assert import_problems(ROOT) == []


def test_passes_are_imported_by_one_name() -> None:
    assert bare_pass_problems(ROOT) == []


def test_files_are_short_and_named_for_what_they_hold() -> None:
    assert file_problems(ROOT) == []


def test_a_helper_class_of_the_tests_has_a_name_of_its_own() -> None:
    assert doubled_classes(ROOT) == []


def test_two_helper_classes_of_one_name_are_caught(tmp_path: Path) -> None:
    write_tree(tmp_path, {"tests/a.py": "class Net: ...", "tests/b/c.py": "class Net: ..."})
    assert doubled_classes(tmp_path) == ["Net: tests/a.py, tests/b/c.py"]


WRONG_IMPORTS = {
    "up": ("groupfx/emit/edit.py", "import groupfx.api", "groupfx.api: api is above emit"),
    "up_from": ("groupfx/convs/spec.py", "from groupfx.emit import x", "emit is above convs"),
    "up_from_root": ("groupfx/convs/spec.py", "from groupfx import emit", "emit is above convs"),
    "up_relative": ("groupfx/convs/spec.py", "from ..emit import x", "emit is above convs"),
    "up_relative_name": ("groupfx/convs/spec.py", "from .. import emit", "emit is above convs"),
    "up_two_dots": ("groupfx/nn/gather.py", "from ..emit.edit import x", "emit is above nn"),
    "up_in_function": (
        "groupfx/convs/spec.py",
        "def f():\n  import groupfx.api",
        "api is above convs",
    ),
    "up_from_pass": ("passes/split.py", "import groupfx.cli", "cli is above passes"),
    "up_from_linked_pass": ("passes/__init__.py", "from ..api import x", "api is above passes"),
    "api_over_cli": ("groupfx/api/models.py", "from groupfx.cli import x", "cli is above api"),
    "own_root": ("groupfx/emit/edit.py", "from groupfx import find", "groupfx is above emit"),
    "wings": ("groupfx/deploy/forms.py", "import groupfx.passes.split", "separate wings"),
    "wings_back": ("passes/split.py", "import groupfx.deploy", "separate wings"),
    "onnx": ("groupfx/verify/sites.py", "import onnx.helper", "imports onnx: not in verify"),
    "onnxruntime": ("passes/split.py", "import onnxruntime", "imports onnxruntime"),
    "typer": ("groupfx/api/models.py", "from typer import Typer", "imports typer: not in api"),
    "torch": ("groupfx/plan/channels.py", "import torch", "imports torch: not in plan"),
    "unlisted_file": ("groupfx/odds.py", "import math", "odds is not in LAYERS"),
    "unlisted_import": (
        "groupfx/api/models.py",
        "import groupfx.odds",
        "groupfx.odds: not in LAYERS",
    ),
}


@pytest.mark.parametrize(
    ("file", "source", "expected"), WRONG_IMPORTS.values(), ids=WRONG_IMPORTS.keys()
)
def test_a_wrong_import_is_caught(tmp_path: Path, file: str, source: str, expected: str) -> None:
    write_tree(tmp_path, {file: source})
    problems = import_problems(tmp_path)
    assert len(problems) == 1
    assert file in problems[0]
    assert expected in problems[0]


RIGHT_IMPORTS = {
    "down": ("groupfx/emit/edit.py", "from groupfx.convs import x"),
    "down_relative": ("groupfx/nn/gather.py", "from ..plan.channels import x"),
    "down_from_root": ("groupfx/cli/table.py", "from groupfx import api, errors"),
    "same_level": ("groupfx/rewriting/driver.py", "from groupfx.verify import x"),
    "same_component": ("passes/fold.py", "from groupfx.passes.split import x"),
    "onnx_in_deploy": ("groupfx/deploy/export.py", "import onnx\nimport onnx_ir as ir"),
    "torch_in_layer_2": ("groupfx/convs/spec.py", "import torch\nfrom torch import nn"),
    "own_name_is_a_prefix": ("groupfx/convs/spec.py", "import groupfx_extras, onnx_like"),
    "root_over_all": ("groupfx/__init__.py", "from groupfx.version import __version__"),
}


@pytest.mark.parametrize(("file", "source"), RIGHT_IMPORTS.values(), ids=RIGHT_IMPORTS.keys())
def test_a_right_import_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    write_tree(tmp_path, {file: source})
    assert import_problems(tmp_path) == []


BARE_PASSES = {
    "api": ("groupfx/api/models.py", "from passes.split import x"),
    "pass": ("passes/fold.py", "import passes.split as x"),
    "test": ("tests/test_x.py", "def test():\n  import passes"),
    "example": ("examples/small.py", "from passes import x"),
}


@pytest.mark.parametrize(("file", "source"), BARE_PASSES.values(), ids=BARE_PASSES.keys())
def test_a_second_name_for_the_passes_is_caught(tmp_path: Path, file: str, source: str) -> None:
    write_tree(tmp_path, {file: source})
    (problem,) = bare_pass_problems(tmp_path)
    assert file in problem


def test_relative_and_full_names_for_the_passes_are_let_through(tmp_path: Path) -> None:
    write_tree(tmp_path, {"passes/fold.py": "from .split import x\nimport groupfx.passes.split"})
    assert bare_pass_problems(tmp_path) == []


def test_a_cycle_within_a_layer_is_caught(tmp_path: Path) -> None:
    files = {
        "groupfx/emit/edit.py": "import groupfx.verify",
        "groupfx/verify/sites.py": "import groupfx.tracing",
        "groupfx/tracing/open.py": "import groupfx.emit.edit",
    }
    write_tree(tmp_path, files)
    assert import_problems(tmp_path) == ["cycle: emit -> verify -> tracing -> emit"]


WRONG_FILES = {
    "long": ("groupfx/emit/edit.py", "x = 1\n" * (MAX_LINES + 1), "501 lines"),
    "long_pass": ("passes/split.py", "x = 1\n" * (MAX_LINES + 1), "501 lines"),
    "long_test": ("tests/test_x.py", "x = 1\n" * (MAX_LINES + 1), "501 lines"),
    "utils": ("groupfx/utils.py", "", "named utils"),
    "helpers": ("groupfx/emit/helpers.py", "", "named helpers"),
    "common": ("passes/common.py", "", "named common"),
    "common_folder": ("groupfx/common/edit.py", "", "named common"),
}


@pytest.mark.parametrize(
    ("file", "source", "expected"), WRONG_FILES.values(), ids=WRONG_FILES.keys()
)
def test_a_wrong_file_is_caught(tmp_path: Path, file: str, source: str, expected: str) -> None:
    write_tree(tmp_path, {file: source})
    problems = file_problems(tmp_path)
    assert len(problems) == 1
    assert file in problems[0]
    assert expected in problems[0]


def test_a_file_of_the_greatest_length_is_let_through(tmp_path: Path) -> None:
    write_tree(tmp_path, {"groupfx/emit/edit.py": "x = 1\n" * MAX_LINES})
    assert file_problems(tmp_path) == []


def write_tree(root: Path, files: dict[str, str]) -> None:
    """Write `files` under `root`, with the link from groupfx/passes to passes as in a checkout."""
    (root / "groupfx").mkdir()
    (root / "passes").mkdir()
    (root / "groupfx" / "passes").symlink_to("../passes")
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
