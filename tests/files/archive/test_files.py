"""Writing our own file: whole or not at all, over nothing of the user's, or refused at once."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from groupfx.errors import FileError
from groupfx.files.archive import Archive, ArchiveInfo, check_replaceable, is_archive, read, write
from groupfx.files.atomic import whole_file
from groupfx.version import __version__


def small() -> Archive:
    return Archive.of_graph(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 1))), "trace")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A file of ours with a report by which it is known again."""
    path = tmp_path / "model.groupfx.pt"
    graph = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 1)))
    write(path, Archive.of_graph(graph, "export", report={"is": "old"}))
    return path


def test_what_is_said_about_a_file_comes_back(tmp_path: Path) -> None:
    inputs = [{"name": None, "dtype": "float32", "shape": (2, 3, 4, 4)}]
    report = {"sites": [{"name": "0", "ratio": 0.5, "ok": True, "why": None}], "count": 2**40}
    graph = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 1)))
    path = tmp_path / "model.pt"
    write(path, Archive.of_graph(graph, "trace", inputs=inputs, report=report))
    archive = read(str(path))
    assert archive.way == "trace"
    assert archive.inputs == [{"name": None, "dtype": "float32", "shape": [2, 3, 4, 4]}]
    assert archive.report == report
    assert archive.info == ArchiveInfo(__version__, str(torch.__version__), archive.info.created)
    assert archive.info.created.endswith("Z")


def test_plain_torch_reads_the_file_without_trust(ours: Path) -> None:
    data = torch.load(ours, weights_only=True)
    assert data["format"] == "groupfx-archive"
    assert data["version"] == 1
    assert {type(entry["data"]) for entry in data["tensors"]} == {Tensor}
    assert [module["class"] for module in data["modules"]] == ["torch.nn.Conv2d", "GraphModule"]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("precious"),
    "empty": lambda path: path.touch(),
    "state_dict": lambda path: torch.save(nn.Linear(2, 3).state_dict(), path),
    "module": lambda path: torch.save(nn.Linear(2, 3), path),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_of_the_users_is_not_replaced(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    make(path)
    before = path.read_bytes()
    assert not is_archive(path)
    with pytest.raises(FileError, match=r"groupfx did not write it.*--force"):
        write(path, small())
    assert path.read_bytes() == before
    write(path, small(), overwrite=True)
    assert is_archive(path)


def test_a_file_of_ours_is_replaced(ours: Path) -> None:
    assert is_archive(ours)
    write(ours, small())
    assert read(ours).report == {}
    assert [item.name for item in ours.parent.iterdir()] == [ours.name]


def test_a_link_is_followed(ours: Path) -> None:
    link = ours.with_name("link.pt")
    link.symlink_to(ours.name)
    write(link, small())
    assert link.is_symlink()
    assert read(ours).report == {}


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "model.pt", small())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o640


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no_folder": (lambda folder: folder / "none" / "m.pt", "cannot be written: No such file"),
    "folder": (lambda folder: folder, "is a folder: name a file in it"),
    "below_a_file": (lambda folder: file_in(folder) / "m.pt", "cannot be written: Not a directory"),
    "device": (lambda folder: pipe_in(folder), "not a regular file"),
}


def file_in(folder: Path) -> Path:
    path = folder / "file"
    path.touch()
    return path


def pipe_in(folder: Path) -> Path:
    """As a device is, but nobody else's: a test that fails would replace it."""
    path = folder / "pipe"
    os.mkfifo(path)
    return path


def test_nothing_replaces_a_device(tmp_path: Path) -> None:
    path = pipe_in(tmp_path)
    with pytest.raises(FileError, match="not a regular file"), whole_file(path):
        raise AssertionError
    assert [*tmp_path.iterdir()] == [path]
    assert path.is_fifo()


@pytest.mark.parametrize(("place", "message"), PLACES.values(), ids=PLACES.keys())
def test_a_place_that_cannot_be_written(
    place: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    path = place(tmp_path)
    with pytest.raises(FileError, match=message):
        write(path, small(), overwrite=True)


def test_whether_a_file_may_be_replaced_is_known_before_the_work(ours: Path) -> None:
    check_replaceable(ours)
    check_replaceable(ours.with_name("new.pt"))
    with pytest.raises(FileError, match="--force"):
        check_replaceable(file_in(ours.parent))


# A process that is stopped while it writes. {stop} runs at the moment that the test is about.
WRITER = """
import os, resource, signal, sys
import torch
from torch import fx, nn
from groupfx.files.archive import Archive, write
from groupfx.errors import FileError

graph = fx.symbolic_trace(nn.Sequential(nn.Linear(300, 300)))
archive = Archive.of_graph(graph, "trace", report={"is": "new"})
{stop}
try:
    write(sys.argv[1], archive)
except FileError as error:
    sys.exit(f"FileError: {error}")
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
STOPS = {
    "killed_while_writing": f"torch.save = lambda data, file: (file.write(b'half'), {KILL})",
    "killed_before_it_is_on_disk": f"os.fsync = lambda descriptor: {KILL}",
    "killed_before_the_rename": f"os.rename = os.replace = lambda *paths: {KILL}",
}


def write_in_another_process(path: Path, stop: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WRITER.replace("{stop}", stop), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
def test_a_process_that_is_killed_leaves_the_old_file(stop: str, ours: Path) -> None:
    before = ours.read_bytes()
    done = write_in_another_process(ours, stop)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ours.read_bytes() == before
    assert read(ours).report == {"is": "old"}


def test_a_full_disk_leaves_the_old_file(ours: Path) -> None:
    # A limit on the size of files stops a write as a full disk does: with an error from the system.
    limit = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    )
    before = ours.read_bytes()
    done = write_in_another_process(ours, limit)
    assert done.returncode == 1
    assert done.stderr.startswith("FileError"), done.stderr
    assert "what was there is unchanged" in done.stderr
    assert ours.read_bytes() == before
    assert [item.name for item in ours.parent.iterdir()] == [ours.name]


def test_the_process_that_is_not_stopped_writes(ours: Path) -> None:
    done = write_in_another_process(ours, "")
    assert done.returncode == 0, done.stderr
    assert read(ours).report == {"is": "new"}


# ---- what is not plain data --------------------------------------------------------------------


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Scale.apply(x)


class DoublesWeight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Convolution(nn.Conv2d):
    pass


@fx.wrap
def own_function(x: Tensor) -> Tensor:
    return x + 1


class KeepTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential)


def traced(*modules: nn.Module) -> fx.GraphModule:
    model = nn.Sequential(*modules)
    return fx.GraphModule(model, KeepTracer().trace(model))


def edited(module: nn.Module, edit: Callable[[nn.Module], object]) -> fx.GraphModule:
    edit(module)
    return traced(module)


def with_root(edit: Callable[[fx.GraphModule], object]) -> fx.GraphModule:
    graph = traced(nn.Conv2d(3, 5, 1))
    edit(graph)
    return graph


def calling(target: Callable[..., object], *args: object) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"), *args)))
    return fx.GraphModule(nn.Module(), graph)


def calling_method(name: str, *args: object) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_method(name, (graph.placeholder("x"), *args)))
    return fx.GraphModule(nn.Module(), graph)


def user_parametrization() -> nn.Module:
    conv = nn.Conv2d(3, 5, 1)
    parametrize.register_parametrization(conv, "weight", DoublesWeight())
    return conv


CONV = "the module 0"
REFUSED: dict[str, tuple[Callable[[], fx.GraphModule], str]] = {
    "foreign_leaf": (lambda: traced(nn.ReLU(), Foreign()), "the module 1 of the class .*Foreign"),
    "subclass": (lambda: traced(Convolution(3, 5, 1)), "the module 0 of the class .*Convolution"),
    "foreign_inside_a_leaf": (
        lambda: traced(nn.TransformerEncoderLayer(8, 2, activation=Foreign())),
        "the module 0.activation of the class .*Foreign",
    ),
    "parametrization": (
        lambda: traced(user_parametrization()),
        "the module 0.parametrizations.weight.0 of the class .*DoublesWeight",
    ),
    "forward_hook": (
        lambda: edited(nn.ReLU(), lambda m: m.register_forward_hook(lambda *_: None)),
        "a hook on the module 0",
    ),
    "pre_hook": (
        lambda: edited(nn.ReLU(), lambda m: m.register_forward_pre_hook(lambda *_: None)),
        "a hook on the module 0",
    ),
    "backward_hook": (
        lambda: edited(nn.ReLU(), lambda m: m.register_full_backward_hook(lambda *_: None)),
        "a hook on the module 0",
    ),
    "root_hook": (
        lambda: with_root(lambda m: m.register_forward_hook(lambda *_: None)),
        "a hook on the module the root",
    ),
    "state_dict_hook": (
        lambda: edited(nn.ReLU(), lambda m: m.register_state_dict_post_hook(lambda *_: None)),
        "a hook on the state_dict of the module 0",
    ),
    "gradient_hook": (
        lambda: edited(nn.Conv2d(3, 5, 1), lambda m: m.weight.register_hook(lambda g: g)),
        "a gradient hook on 0.weight",
    ),
    "function_as_field": (
        lambda: edited(nn.ReLU(), lambda m: setattr(m, "extra", own_function)),
        "the function .*own_function .field extra of 0.",
    ),
    "forward_replaced": (
        lambda: edited(nn.ReLU(), lambda m: setattr(m, "forward", own_function)),
        "field forward of 0",
    ),
    "object_as_field": (
        lambda: edited(nn.ReLU(), lambda m: setattr(m, "place", Path("x"))),
        "a value of the type pathlib.*Path .field place of 0.",
    ),
    "sparse": (
        lambda: with_root(lambda m: m.register_buffer("s", torch.eye(3).to_sparse())),
        "sparse, quantised or nested .in the root.",
    ),
    "computed": (
        lambda: with_root(lambda m: m.register_buffer("s", m.get_parameter("0.weight") * 2)),
        "was computed from others",
    ),
    "contains_itself": (
        lambda: with_root(lambda m: m.add_module("self_again", m)),
        "contains itself .self_again.",
    ),
    "own_function": (lambda: calling(own_function), "a call of .*own_function .node own_function."),
    "load": (lambda: calling(torch.load), "a call of torch.*load"),
    "eval": (lambda: calling(eval), "a call of builtins.eval"),
    "autograd_function": (lambda: calling(Scale.apply), "a call of"),
    "numpy": (lambda: calling_method("numpy"), "a call of the method numpy"),
    "apply_": (lambda: calling_method("apply_"), "a call of the method apply_"),
    "object_as_argument": (lambda: calling(torch.add, Path("x")), "a value of the type pathlib"),
    "huge_integer": (lambda: calling(torch.add, 2**64), "more than 64 bits"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_plain_data_is_refused_before_any_work(
    make: Callable[[], fx.GraphModule], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FileError, match=message) as caught:
        write(tmp_path / "model.pt", Archive.of_graph(make(), "trace"))
    assert "--arch" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_is_not_plain_is_refused() -> None:
    graph = traced(nn.ReLU())
    with pytest.raises(FileError, match=r"report.sites\[1\].weight is a Tensor"):
        Archive.of_graph(graph, "trace", report={"sites": [1, {"weight": torch.ones(2)}]})
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(FileError, match=r"report.again.* nested"):
        Archive.of_graph(graph, "trace", report=loop)


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    archive = Archive.of_modules({}, {"a": torch.ones(2), "b": 3})  # type: ignore[dict-item]
    with pytest.raises(FileError, match="the state of b is a int"):
        write(tmp_path / "model.pt", archive)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_named(ours: Path) -> None:
    data = torch.load(ours, weights_only=True)
    torch.save(data | {"version": 2, "groupfx": "9.0"}, ours)
    with pytest.raises(FileError, match=r"format 2, written by groupfx 9\.0.*install a newer"):
        read(ours)
