"""What a file of ours says, and the table that stands for it in the file."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ...convs.spec import ConvSpec
from ...errors import FileError
from ...version import __version__
from ..names import Damaged, shown
from ..names import path as checked_path
from ..pickles import reason
from .modules import ModuleWriter, read_modules
from .tensors import NotPlain, TensorWriter, numbers_of, read_tensors, require_numbers
from .values import Budget, ValueReader

T = TypeVar("T")

FORMAT = "groupfx-archive"
VERSION = 1
WAYS = ("trace", "export", "modules")

_MAX_PLAIN_DEPTH = 32
_REMEDY = (
    "a file of ours holds only torch's own operators and modules, so that it is safe to load: "
    "open the model with way='modules' (--way modules: the file then holds its weights and is read "
    "with the same --arch), or keep it with torch.save"
)


@dataclass(frozen=True)
class ArchiveInfo:
    """Which versions wrote a file, and when (UTC, ISO 8601)."""

    groupfx: str
    torch: str
    created: str

    @classmethod
    def now(cls) -> ArchiveInfo:
        """This version, at this moment."""
        moment = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        return cls(__version__, str(torch.__version__), moment.isoformat().replace("+00:00", "Z"))


@dataclass(frozen=True)
class Calls:
    """A graph for the calls of a function with these numbers while the module at `path` runs."""

    path: str
    spec: ConvSpec
    graph: fx.GraphModule


@dataclass(frozen=True)
class Archive:
    """A rewritten model as it lies in a file.

    Ways `trace` and `export` have a `model`. Way `modules` has `fragments`, small graphs that
    replace the modules at their paths, `calls`, and `state`, the state_dict of the whole model.
    `inputs` describes example inputs, one plain table an argument; `report` is plain data.
    """

    way: str
    model: fx.GraphModule | None
    fragments: Mapping[str, fx.GraphModule]
    state: Mapping[str, Tensor] | None
    inputs: list[dict[str, Any]]
    report: Mapping[str, Any]
    info: ArchiveInfo
    calls: Sequence[Calls] = ()

    @classmethod
    def of_graph(
        cls, model: nn.Module, way: str, *, inputs: object = None, report: object = None
    ) -> Archive:
        """An archive of one graph, written by this version now."""
        if not isinstance(model, fx.GraphModule):
            raise FileError(f"{type(model).__name__} is no GraphModule and has no graph to write")
        return cls(way, model, {}, None, _listed(inputs), _tabled(report), ArchiveInfo.now())

    @classmethod
    def of_modules(
        cls,
        fragments: Mapping[str, fx.GraphModule],
        state: Mapping[str, Tensor],
        *,
        calls: Sequence[Calls] = (),
        inputs: object = None,
        report: object = None,
    ) -> Archive:
        """An archive of swapped modules and calls, written by this version now."""
        kept = (_listed(inputs), _tabled(report))
        return cls("modules", None, dict(fragments), dict(state), *kept, ArchiveInfo.now(), calls)


def _listed(inputs: object, budget: Budget | None = None) -> list[dict[str, Any]]:
    found = plain(inputs or [], "inputs", budget=budget)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise FileError("the description of the inputs is no list of tables")
    return found


def _tabled(report: object, budget: Budget | None = None) -> dict[str, Any]:
    found = plain(report or {}, "report", budget=budget)
    if not isinstance(found, dict):
        raise FileError("the report is no table")
    return found


def plain(value: object, where: str, depth: int = 0, budget: Budget | None = None) -> Any:
    """`value` as JSON would hold it: tuples become lists. Raises `FileError` for what it cannot."""
    if budget is not None:
        budget.spend()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth > _MAX_PLAIN_DEPTH:
        raise FileError(f"{where} is nested more than {_MAX_PLAIN_DEPTH} deep")
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1, budget) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        named = value.items()
        return {key: plain(item, f"{where}.{key}", depth + 1, budget) for key, item in named}
    raise FileError(f"{where} is a {type(value).__name__}, which is no plain data")


def encode_graph(model: fx.GraphModule) -> dict[str, Any]:
    """`model` as plain data and tensors.

    Raises `FileError`, naming the node or module, for what a file cannot hold.
    """
    return _encode({"": model})


def decode_graph(data: object) -> fx.GraphModule:
    """The model of `encode_graph`. Raises `FileError` if `data` is not what that returns."""
    return reading(lambda: _decode(data, Budget())[""], "the data")


def copy_graphs(graphs: Mapping[str, fx.GraphModule]) -> dict[str, fx.GraphModule]:
    """The graphs with tensors of their own; ties between them stay.

    `copy.deepcopy` of a GraphModule drops what its graph does not use.
    """
    data = _encode(graphs)
    for entry in data["tensors"]:
        entry["data"] = entry["data"].clone()
    return _decode(data, Budget())


def rebuild_plain(module: nn.Module) -> nn.Module:
    """`module` built anew from what a file of ours would hold of it, with the same tensors.

    This is how a module from a stranger's pickle is cleaned: whatever a file of ours may not hold
    (other classes, hooks, functions as fields, names that would turn into source text when it is
    traced) raises `NotPlain` or `Damaged`.
    """
    tensors = TensorWriter(strict=True)
    modules = ModuleWriter(tensors)
    index = modules.add(module)
    reader = ValueReader(read_tensors(tensors.entries), Budget(), functions=True)
    return read_modules(modules.entries, reader)[index]


def encode(archive: Archive) -> dict[str, Any]:
    """The table that stands for `archive`. Raises `FileError` for what a file cannot hold."""
    if archive.way not in WAYS:
        raise FileError(f"unknown way {archive.way!r}")
    graphs = dict(archive.fragments) if archive.model is None else {"": archive.model}
    encoded = _encode(graphs, archive.calls)
    _require_readable(encoded)
    return {
        # First, so that the kind of a file shows in its first bytes.
        "format": FORMAT,
        "version": VERSION,
        "groupfx": archive.info.groupfx,
        "torch": archive.info.torch,
        "created": archive.info.created,
        "way": archive.way,
        "inputs": plain(archive.inputs, "inputs"),
        "report": plain(archive.report, "report"),
        **encoded,
        "state": None if archive.state is None else _encode_state(archive.state),
    }


def _require_readable(encoded: Mapping[str, Any]) -> None:
    """Raise `FileError` for what could be written, and not be read: no name was looked at yet."""
    try:
        modules = _read_graphs_modules(encoded, Budget())
        _graphs(encoded, modules)
        list(_read_calls(encoded["calls"], modules, Budget()))
    except (NotPlain, Damaged) as error:
        raise FileError(f"the model cannot be written: {error}; {_REMEDY}") from error


def decode(data: object, budget: Budget) -> Archive:
    """The archive that the table `data` stands for. Raises `Damaged`."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise Damaged("it was not written by groupfx")
    way = data.get("way")
    _check_version(data)
    modules = _read_graphs_modules(data, budget)
    graphs = _graphs(data, modules)
    calls = list(_read_calls(data.get("calls", []), modules, budget))
    if way not in WAYS or (way == "modules") == ("" in graphs):
        raise Damaged("it holds no model")
    state = data.get("state")
    return Archive(
        way=way,
        model=graphs.pop("", None),
        fragments=graphs,
        state=None if state is None else _decode_state(state),
        inputs=_listed(data.get("inputs"), budget),
        report=_tabled(data.get("report"), budget),
        info=ArchiveInfo(*(shown(data.get(key)) for key in ("groupfx", "torch", "created"))),
        calls=calls,
    )


def _read_calls(data: object, modules: list[nn.Module], budget: Budget) -> Iterator[Calls]:
    for entry in plain(data, "calls", budget=budget):
        path = ".".join(checked_path(entry["path"])) if entry["path"] else ""
        yield Calls(path, _read_spec(entry["spec"]), _graph_at(modules, entry["graph"]))


def _read_spec(entry: Mapping[str, Any]) -> ConvSpec:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return ConvSpec(**fields)


def _check_version(data: dict[str, Any]) -> None:
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise Damaged("it has no format version")
    if version > VERSION:
        writer = shown(data.get("groupfx"), 20)
        raise FileError(
            f"it has format {version}, written by groupfx {writer}, and this is groupfx "
            f"{__version__}, which reads up to format {VERSION}: install a newer groupfx"
        )


def _encode(graphs: Mapping[str, fx.GraphModule], calls: Sequence[Calls] = ()) -> dict[str, Any]:
    tensors = TensorWriter()
    modules = ModuleWriter(tensors)
    try:
        indices = {path: modules.add(graph, path) for path, graph in graphs.items()}
        # Who knows nothing of them reads the same function, with the calls as they were.
        listed = [
            {"path": c.path, "spec": asdict(c.spec), "graph": modules.add(c.graph, c.path)}
            for c in calls
        ]
    except (NotPlain, Damaged) as error:
        raise FileError(f"the model cannot be written: it has {error}; {_REMEDY}") from error
    return {
        "graphs": indices,
        "calls": listed,
        "modules": modules.entries,
        "tensors": tensors.entries,
    }


def _decode(data: object, budget: Budget) -> dict[str, fx.GraphModule]:
    return _graphs(data, _read_graphs_modules(data, budget))


def _read_graphs_modules(data: object, budget: Budget) -> list[nn.Module]:
    if not isinstance(data, dict):
        raise Damaged("it holds no graphs")
    reader = ValueReader(read_tensors(data.get("tensors")), budget, functions=True)
    return read_modules(data.get("modules"), reader)


def _graphs(data: object, modules: list[nn.Module]) -> dict[str, fx.GraphModule]:
    if not isinstance(data, dict) or not isinstance(data.get("graphs"), dict):
        raise Damaged("it holds no graphs")
    return {
        ".".join(checked_path(path)) if path else "": _graph_at(modules, index)
        for path, index in data["graphs"].items()
    }


def _graph_at(modules: list[nn.Module], index: object) -> fx.GraphModule:
    inside = type(index) is int and 0 <= index < len(modules)
    graph = modules[index] if inside else None  # type: ignore[call-overload]
    if not isinstance(graph, fx.GraphModule):
        raise Damaged("one of its graphs is missing")
    return graph


def _encode_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise FileError(f"the state of {key} is a {type(tensor).__name__}, not a tensor")
        try:
            found[key] = numbers_of(tensor.detach())
        except NotPlain as error:
            raise FileError(f"the model cannot be written: {key} is {error}") from error
    return found


def _decode_state(data: object) -> dict[str, Tensor]:
    if not isinstance(data, dict):
        raise Damaged("its state is no table")
    return {str(key): require_numbers(tensor) for key, tensor in data.items()}


def reading(read: Callable[[], T], what: str) -> T:
    """The result of `read`, with every way in which wrong data makes it fail as a `FileError`."""
    try:
        return read()
    except FileError as error:
        raise FileError(f"{what}: {error}") from error
    except Exception as error:
        said = shown(reason(error), 300)
        raise FileError(f"{what} is damaged, or groupfx did not write it: {said}") from error
