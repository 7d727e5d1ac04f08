"""One version, one torch range, every version pinned, and builds that hold each pass once."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from groupfx import version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEST_INSTALL = 'pip install -c constraints.txt -e ".[test]"'
# What a build reads; the tests are not part of it.
BUILD_INPUTS = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
# What is below groupfx/ in a checkout and not so in a build: the passes are a link, the site is not
# part of the package.
ELSEWHERE = ("passes/", "docs/")
# torch pins what it needs on a machine with a GPU by itself, and which that is depends on it.
GPU_PARTS = ("cuda-", "nvidia-", "triton")


def requirements() -> list[Requirement]:
    """Return what groupfx requires, all extras included."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]


def pins() -> dict[str, str]:
    """Return {package name: version} of constraints.txt, whose lines may be nothing but pins."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    strange = [line for line, pair in zip(lines, pairs, strict=True) if pair is None]
    assert strange == []
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair}


def unpinned(wanted: list[Requirement], pinned: dict[str, str]) -> set[str]:
    """Return the names that `wanted` leads to, as far as installed here, and `pinned` lacks."""
    seen: set[tuple[str, str]] = set()
    missing = set()
    queue = [(requirement, "") for requirement in wanted]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not applies or name.startswith(GPU_PARTS):
            continue
        if name not in pinned:
            missing.add(name)
        for inner_extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, inner_extra))
            try:
                inner = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            queue.extend((Requirement(line), inner_extra) for line in inner)
    return missing


def test_the_torch_range_is_the_one_in_version() -> None:
    (torch,) = (r for r in requirements() if r.name == "torch")
    first, before = (".".join(map(str, v)) for v in (version.TORCH_FROM, version.TORCH_BEFORE))
    assert torch.specifier == Requirement(f"torch>={first},<{before}").specifier


def test_the_installed_version_is_the_one_in_version() -> None:
    assert importlib.metadata.version("groupfx") == version.__version__


def test_pins_satisfy_the_requirements() -> None:
    pinned = pins()
    outside = [
        str(r)
        for r in requirements()
        if not r.specifier.contains(pinned[canonicalize_name(r.name)])
    ]
    assert outside == []


def test_everything_that_is_installed_for_groupfx_is_pinned() -> None:
    assert unpinned(requirements(), pins()) == set()


@pytest.mark.parametrize("name", ["torch", "mpmath", "pygments"], ids=["own", "inner", "innermost"])
def test_a_missing_pin_is_caught(name: str) -> None:
    pinned = {pin: number for pin, number in pins().items() if pin != name}
    assert unpinned(requirements(), pinned) == {name}


def test_build_requirements_leave_torch_out() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [Requirement(line).name for line in pyproject["build-system"]["requires"]]
    assert names == ["setuptools"]


def test_readme_and_ci_install_alike() -> None:
    for file in ("README.md", ".ci/run", "CONTRIBUTING.md"):
        assert TEST_INSTALL in (ROOT / file).read_text(encoding="utf-8").replace(" --quiet", "")


def test_version_is_read_without_torch() -> None:
    code = "import sys, groupfx.version; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def copy_checkout(target: Path, *, symlink: bool) -> Path:
    """Copy what a build reads; without `symlink`, as git checks a link out where there are none."""
    target.mkdir()
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("groupfx", "passes"):
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=junk)
    for file in BUILD_INPUTS:
        shutil.copy(ROOT / file, target / file)
    link = target / "groupfx" / "passes"
    assert os.readlink(link) == "../passes"
    if not symlink:
        link.unlink()
        link.write_text("../passes")
    return target


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout and return its stdout; a failure shows its output."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names_in(archive: Path) -> list[str]:
    """Return the file names in a wheel, or in an sdist without its leading folder."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as sdist:
        return [m.name.partition("/")[2] for m in sdist.getmembers() if m.isfile()]


def modules_below(folder: Path) -> set[str]:
    """Return the paths of the .py files below a folder of the checkout, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def build_problems(archive: Path) -> list[str]:
    """Say which modules are not in a wheel or an sdist exactly once, and what does not belong."""
    names = names_in(archive)
    in_wheel = archive.suffix == ".whl"
    own = {f"groupfx/{n}" for n in modules_below(ROOT / "groupfx") if not n.startswith(ELSEWHERE)}
    home = "groupfx/passes/" if in_wheel else "passes/"
    wanted = own | {home + n for n in modules_below(ROOT / "passes")} | {"groupfx/py.typed"}
    wanted |= {f"groupfx/page/page.{kind}" for kind in ("html", "css", "js")}
    problems = [f"{n} is there {names.count(n)} times" for n in wanted if names.count(n) != 1]
    modules = {n for n in names if n.endswith(".py")}
    extra = modules - wanted - (set() if in_wheel else {"setup.py"})
    return sorted([*problems, *(f"{n} does not belong" for n in extra)])


@pytest.fixture(scope="module", params=[True, False], ids=["symlink", "text_file"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a checkout; return a folder with tree/*.whl, tree/*.tar.gz and sdist/*.whl."""
    home = tmp_path_factory.mktemp("built")
    checkout = copy_checkout(home / "checkout", symlink=request.param)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, home / "tree", "--sdist", "--wheel", checkout, cwd=home)
    # A wheel made from the sdist, which is what pip makes of one.
    (sdist,) = (home / "tree").glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        opened.extractall(home / "unpacked", filter="data")
    (source,) = (home / "unpacked").iterdir()
    run(*build, home / "sdist", "--wheel", source, cwd=home)
    return home


def new_environment(folder: Path) -> Path:
    """Make a virtual environment that sees the packages of this one; return its bin folder."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    # A path line makes packages importable, but not the editable groupfx: its own .pth is not run.
    outer = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site / "outer.pth").write_text("\n".join(outer) + "\n")
    return Path(sysconfig.get_path("scripts", vars=scheme))


def install(bin_folder: Path, *what: str | Path, cwd: Path) -> None:
    """Install groupfx into an environment without asking an index for anything."""
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    pip = (sys.executable, "-m", "pip", "--python", bin_folder / "python", "install")
    run(*pip, *options, *what, cwd=cwd)


def where_passes_are(bin_folder: Path, cwd: Path) -> Path:
    """Import groupfx and groupfx.passes in an environment; return where the passes came from."""
    code = "import groupfx, groupfx.passes; print(groupfx.passes.__file__)"
    return Path(run(bin_folder / "python", "-c", code, cwd=cwd).strip())


@pytest.mark.long
@pytest.mark.parametrize("archive", ["tree/*.whl", "tree/*.tar.gz", "sdist/*.whl"])
def test_a_build_holds_every_module_once(built: Path, archive: str) -> None:
    (path,) = built.glob(archive)
    assert build_problems(path) == []


@pytest.mark.long
def test_a_build_with_a_missing_or_a_doubled_module_is_caught(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("tree/*.whl")
    wrong = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as right, zipfile.ZipFile(wrong, "w") as copy:
        for name in right.namelist():
            if name != "groupfx/errors.py":
                copy.writestr(name, right.read(name))
        copy.writestr("passes/__init__.py", "")
    assert build_problems(wrong) == [
        "groupfx/errors.py is there 0 times",
        "passes/__init__.py does not belong",
    ]


@pytest.mark.long
def test_the_wheel_installs_and_runs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("tree/*.whl")
    bin_folder = new_environment(tmp_path / "venv")
    install(bin_folder, wheel, cwd=tmp_path)
    assert where_passes_are(bin_folder, tmp_path).is_relative_to(tmp_path / "venv")
    for command in ((bin_folder / "groupfx",), (bin_folder / "python", "-m", "groupfx")):
        assert version.__version__ in run(*command, "--version", cwd=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("symlink", [True, False], ids=["symlink", "text_file"])
def test_an_editable_install_follows_the_checkout(tmp_path: Path, symlink: bool) -> None:
    checkout = copy_checkout(tmp_path / "checkout", symlink=symlink)
    bin_folder = new_environment(tmp_path / "venv")
    install(bin_folder, "--editable", checkout, cwd=tmp_path)
    assert where_passes_are(bin_folder, tmp_path).resolve().parent == checkout / "passes"


@pytest.mark.long
def test_a_bare_checkout_runs_without_an_install(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout", symlink=True)
    bin_folder = new_environment(tmp_path / "venv")
    command = (bin_folder / "python", "-m", "groupfx", "--version")
    assert version.__version__ in run(*command, cwd=checkout)
    assert where_passes_are(bin_folder, checkout).resolve().parent == checkout / "passes"
