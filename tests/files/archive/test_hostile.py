"""Files in our own format that were tampered with: names, targets, classes, tables, sharing.

A graph becomes Python source and is executed, so every string of a file is an attack to try.
"""

import builtins
import contextlib
import operator
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from groupfx.errors import FileError
from groupfx.files.archive import Archive, decode_graph, encode_graph, read, write
from groupfx.files.archive.module_classes import class_of, classes
from groupfx.files.archive.operators import ATTRIBUTES, function_name, function_of, methods
from groupfx.files.models import read_model
from tests.files.archive.test_archive import CASES, graph_of
from tests.files.attacks import Call
from tests.step_counts import steps_of
from tests.thinning import one_in

SHAPE = (2, 6, 7, 5)
HUGE = 2**62
Step = str | int


def payload(model: nn.Module, folder: Path) -> dict[str, Any]:
    """What a file of ours holds; saved anew as it is, which is how it is tampered with, it is read.

    Else a reader that refuses every file would pass for a careful one.
    """
    path = folder / "good.pt"
    inputs = [{"name": None, "dtype": "float32", "shape": list(SHAPE)}]
    write(path, Archive.of_graph(graph_of(model), "trace", inputs=inputs, report={"sites": ["a"]}))
    found: dict[str, Any] = torch.load(path, weights_only=True)
    torch.save(found, path)
    assert read(path).model is not None
    return found


def places(value: object, kinds: tuple[type, ...], above: tuple[Step, ...] = ()) -> Iterator[Any]:
    """Paths to all values of `kinds` in nested tables and lists."""
    if isinstance(value, kinds):
        yield above
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from places(item, kinds, (*above, key))


def replaced(value: Any, path: tuple[Step, ...], new: object) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    if isinstance(value, dict):
        return value | {path[0]: replaced(value.get(path[0]), path[1:], new)}
    changed = [replaced(v, path[1:], new) if i == path[0] else v for i, v in enumerate(value)]
    return tuple(changed) if isinstance(value, tuple) else changed


def with_key(value: Any, path: tuple[Step, ...], new: object) -> Any:
    """A copy of `value` in which the key at `path` is called `new`."""
    if len(path) > 1:
        return replaced(value, path[:1], with_key(value[path[0]], path[1:], new))
    return {new if key == path[0] else key: item for key, item in value.items()}


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which any code that runs would leave something; nothing may."""
    folder = tmp_path / "watched"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


def run(data: dict[str, Any], path: Path, *, call: bool = True) -> None:
    """Read a tampered file, and call the model if there is one; only our errors may come out."""
    torch.save(data, path)
    try:
        model = read(path).model
    except FileError:
        return
    # How long a model computes is its own affair: a huge number may ask for years of it.
    if model is not None and call:
        with contextlib.suppress(Exception):
            model(torch.ones(SHAPE))


MKDIR = '__import__("os").mkdir("harm")'
INJECTIONS = (
    MKDIR,
    f'x"), {MKDIR}, ("',
    f"x'), {MKDIR}, ('",
    f"x={MKDIR}",
    f"x: {MKDIR}",
    f"x\n    {MKDIR}\n    y",
    f"x); {MKDIR}; (x",
    f"x # COUNTER: 0\n{MKDIR}",
    f"{{{MKDIR}}}",
)


@pytest.mark.parametrize("case", ["arguments", "exported_dynamic", "parametrized"])
def test_no_string_of_a_file_is_executed(case: str, tmp_path: Path, watched: Path) -> None:
    data = payload(CASES[case](), tmp_path)
    chance = random.Random(5)
    for path in places(data, (str,)):
        for text in chance.sample(INJECTIONS, 3):
            run(replaced(data, path, text), tmp_path / "bad.pt")


@pytest.mark.parametrize("case", ["arguments", "exported_dynamic", "parametrized"])
def test_no_key_of_a_file_is_executed(case: str, tmp_path: Path, watched: Path) -> None:
    data = payload(CASES[case](), tmp_path)
    chance = random.Random(6)
    for path in places(data, (object,)):
        if path and isinstance(path[-1], str):
            run(with_key(data, path, chance.choice(INJECTIONS)), tmp_path / "bad.pt")


def graph_with_name(name: str) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    next(iter(graph.nodes)).target = name
    return fx.GraphModule(nn.Module(), graph)


def test_fx_does_execute_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack is real: the name of an input, unchecked, makes the folder."""
    monkeypatch.chdir(tmp_path)
    graph_with_name(f"x={MKDIR}")
    assert (tmp_path / "harm").is_dir()


# ---- one change at a time ----------------------------------------------------------------------


def small(root: nn.Module | None = None) -> dict[str, Any]:
    """Conv -> relu -> getattr -> method, all in one graph."""
    root = nn.Module() if root is None else root
    root.add_module("conv", nn.Conv2d(6, 4, 3))
    root.register_buffer("shift", torch.ones(4, 1, 1))
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("conv", (x,))
    y = graph.call_function(torch.add, (y, graph.get_attr("shift")), {"alpha": 2})
    rows = graph.call_function(getattr, (y, "shape"))
    graph.output((graph.call_method("sum", (y, 1)), rows))
    return encode_graph(fx.GraphModule(root, graph))


@pytest.fixture
def graph() -> dict[str, Any]:
    """A small graph as data, which is read as long as nothing in it is changed."""
    data = small()
    decode_graph(data)
    return data


GRAPH = ("modules", 1)
NODES = (*GRAPH, "graph", "nodes")
CALL = (*NODES, 1)  # call_module conv
READ = (*NODES, 2)  # get_attr shift
ADD = (*NODES, 3)  # call_function torch.add
ATTRIBUTE = (*NODES, 4)  # getattr(y, "shape")
METHOD = (*NODES, 5)  # y.sum(1)

FORBIDDEN_FUNCTIONS = (
    "torch.load",
    "torch.save",
    "torch.from_file",
    "torch.hub.load",
    "torch.compile",
    "torch.ops.load_library",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.aten.save.default",
    "torch.ops.quantized.add.default",
    "torch.ops.aten.__class__.default",
    "torch.serialization.load",
    "torch.os.system",
    "torch.nn.functional.torch.load",
    "torch.nn.functional.handle_torch_function",
    "torch.set_num_threads",
    "torch.manual_seed",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.__import__",
    "builtins.setattr",
    "builtins.type",
    "builtins.print",
    "operator.attrgetter",
    "operator.methodcaller",
    "operator.call",
    "os.system",
    "os.mkdir",
    "posix.system",
    "torch.Tensor.apply_",
    "numpy.load",
    "",
)


@pytest.mark.parametrize("name", FORBIDDEN_FUNCTIONS)
def test_a_function_outside_the_list_is_refused(name: str, graph: dict[str, Any]) -> None:
    with pytest.raises(FileError, match="is not one that a file may call"):
        decode_graph(replaced(graph, (*ADD, "target"), name))


FORBIDDEN_METHODS = (
    "apply_", "map_", "numpy", "storage", "untyped_storage", "data_ptr", "share_memory_",
    "register_hook", "set_", "__reduce_ex__", "__class__", "__init__", "backward", "resize_",
    "to_folder", "load_state_dict", "module_load", "as_subclass", "record_stream",
)  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN_METHODS)
def test_a_method_outside_the_list_is_refused(name: str, graph: dict[str, Any]) -> None:
    with pytest.raises(FileError, match="is not one that a file may call"):
        decode_graph(replaced(graph, (*METHOD, "target"), name))


FORBIDDEN_CLASSES = (
    "torch.nn.DataParallel",
    "torch.nn.parallel.DistributedDataParallel",
    "torch.nn.LazyConv2d",
    "torch.nn.quantized.Conv2d",
    "torch.fx.GraphModule",
    "torch.jit.ScriptModule",
    "groupfx.nn.is_weight_hook",
    "groupfx.files.archive.write",
    "os.system",
)


@pytest.mark.parametrize("name", FORBIDDEN_CLASSES)
def test_a_class_outside_the_list_is_refused(name: str, graph: dict[str, Any]) -> None:
    with pytest.raises(FileError, match="is not a module that a file may hold"):
        decode_graph(replaced(graph, ("modules", 0, "class"), name))


REACHES_OUT = re.compile(
    r"(^|[_.])(compile|eval|exec|file|hook|hub|import|load|open|ptr|save|storage|system)s?([_.]|$)"
)


def test_the_lists_reach_no_files_and_no_code() -> None:
    rooms = (torch, nn.functional, torch.linalg, torch.fft, torch.special, operator, builtins, os)
    functions = [function_name(getattr(room, name)) for room in rooms for name in dir(room)]
    overloads = []
    for qualified in torch._C._dispatch_get_all_op_names():
        space, _, name = qualified.partition("::")
        packet, _, overload = name.partition(".")
        found = getattr(getattr(torch.ops, space), packet, None)
        overloads.append(function_name(getattr(found, overload or "default", None)))
    allowed = [name for name in (*functions, *overloads, *methods(), *ATTRIBUTES) if name]
    assert len(allowed) > 3000
    assert [name for name in allowed if REACHES_OUT.search(name)] == []
    assert [name for name in classes() if "Parallel" in name or "Lazy" in name] == []


def test_the_lists_hold_what_models_use() -> None:
    assert function_of("torch.relu") is torch.relu
    assert function_name(torch.ops.aten.conv2d.default) == "torch.ops.aten.conv2d.default"
    assert class_of("torch.nn.Conv2d") is nn.Conv2d
    assert {"view", "transpose", "size", "to", "__getitem__"} <= methods()


CHANGES: dict[str, tuple[tuple[Step, ...], object, str]] = {
    "input_self": ((*NODES, 0, "target"), "self", "reserved name"),
    "input_keyword": ((*NODES, 0, "target"), "lambda", "reserved name"),
    "input_three_stars": ((*NODES, 0, "target"), "***x", "is not a name"),
    "node_builtin": ((*CALL, "name"), "getattr", "taken or reserved"),
    "node_twice": ((*CALL, "name"), "x", "taken or reserved"),
    "unknown_op": ((*CALL, "op"), "call_anything", "does something unknown"),
    "method_of_the_graph": ((*CALL, "target"), "to_folder", "no module of the model"),
    "attribute_of_a_module": ((*CALL, "target"), "conv.forward", "no module of the model"),
    "dunder_of_a_module": ((*CALL, "target"), "conv.__class__", "reserved name"),
    "module_as_a_tensor": ((*READ, "target"), "conv", "no tensor of the model"),
    "attribute_as_a_tensor": ((*READ, "target"), "conv.in_channels", "no tensor of the model"),
    "graph_as_a_tensor": ((*READ, "target"), "graph", "no tensor of the model"),
    "attribute": ((*ATTRIBUTE, "args"), ({"node": "add"}, "__class__"), "not one of a tensor's"),
    "computed_attribute": (
        (*ATTRIBUTE, "args"),
        ({"node": "add"}, {"node": "x"}),
        "not one of a tensor's",
    ),
    "attribute_of_a_constant": ((*ATTRIBUTE, "args"), ("text", "shape"), "not one of a tensor's"),
    "method_of_a_constant": ((*METHOD, "args"), ("text",), "on no value of the graph"),
    "function_as_an_argument": (
        (*ADD, "args"),
        ({"node": "conv"}, {"function": "torch.relu"}),
        "a function stands where a value should",
    ),
    "tensor_as_an_argument": ((*ADD, "args"), ({"tensor": 0},), "not in the file"),
    "later_node": ((*CALL, "args"), ({"node": "sum_1"},), "no earlier node computes"),
    "itself": ((*CALL, "args"), ({"node": "conv"},), "no earlier node computes"),
    "unknown_kind": ((*CALL, "args"), ({"code": "x"},), "of an unknown kind"),
    "two_kinds": ((*CALL, "args"), ({"node": "x", "tensor": 0},), "in an unknown way"),
    "raw_tensor": ((*CALL, "args"), (torch.ones(2),), "in an unknown way"),
    "keyword": ((*ADD, "kwargs"), {"alpha=1, out": 2}, "is not a name"),
    "no_arguments": ((*CALL, "args"), None, "is incomplete"),
    "huge_integer": ((*ADD, "kwargs"), {"alpha": 2**64}, "more than 64 bits"),
    "long_string": ((*ADD, "kwargs"), {"alpha": "x" * 10_001}, "a string of 10001"),
    "dtype": ((*ADD, "kwargs"), {"alpha": {"dtype": "load"}}, "no dtype of that name"),
    "device": ((*ADD, "kwargs"), {"alpha": {"device": "cpu;x"}}, "no proper name"),
    "enum": ((*ADD, "kwargs"), {"alpha": {"enum": "os.system"}}, "not one of those known"),
    "no_output": (NODES, [], "does not end with its one output"),
    "class_name": ((*GRAPH, "graph", "name"), "x:\n  y", "is not a name"),
    "child_as_a_method": ((*GRAPH, "children"), {"forward": 0}, "already has an attribute"),
    "child_as_a_graph": ((*GRAPH, "children"), {"graph": 0}, "already has an attribute"),
    "child_with_a_quote": ((*GRAPH, "children"), {'a"b': 0}, "is not a name of a module"),
    "child_of_itself": ((*GRAPH, "children"), {"conv": 1}, "not in the file"),
    "child_is_later": (("modules", 0, "children"), {"a": 1}, "not in the file"),
    "child_and_tensor": ((*GRAPH, "buffers"), {"conv": 0}, "two things are named 'conv'"),
    "buffer_as_a_parameter": ((*GRAPH, "parameters"), {"p": 0}, "a parameter of a module is none"),
    "field_as_a_method": (("modules", 0, "fields"), {"forward": 1}, "cannot be a field"),
    "field_as_an_internal": (("modules", 0, "fields"), {"_modules": 1}, "cannot be a field"),
    "field_as_a_hook": (("modules", 0, "fields"), {"_forward_hooks": 1}, "cannot be a field"),
    "hook": (("modules", 0, "hooks"), [{"kind": "prune", "name": "x"}], "has no attribute"),
    "hook_on_a_method": (("modules", 0, "hooks"), [{"name": "forward"}], "something else"),
    "hook_of_another_kind": (
        ("modules", 0, "hooks"),
        [{"kind": "any", "name": "x", "dim": 0}],
        "not one of torch's",
    ),
    "parametrized": (("modules", 0, "parametrized"), True, "has no parametrisations"),
    "tensor_index": (("modules", 0, "parameters"), {"weight": 99}, "not in the file"),
    "tensor_claim": (
        ("tensors", 0, "data"),
        torch.ones(1).expand(2**33),
        "larger than the numbers given",
    ),
    "tensor_sparse": (("tensors", 0, "data"), torch.eye(2).to_sparse(), "not a plain tensor"),
    "tensor_text": (("tensors", 0, "data"), "weights", "not a plain tensor"),
    "integer_gradient": (("tensors", 1, "data"), torch.ones(2).long(), "require a gradient"),
    "graphs": (("graphs",), {"": 0}, "one of its graphs is missing"),
    "graph_path": (("graphs",), {"a.__class__": 1}, "reserved name"),
}


@pytest.mark.parametrize(("path", "new", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_refused(
    path: tuple[Step, ...], new: object, message: str, graph: dict[str, Any]
) -> None:
    with pytest.raises(FileError, match=message):
        decode_graph(replaced(graph, path, new))


def test_hooks_may_not_spread_their_tensors() -> None:
    """A column under a row's mask would be a matrix of any size."""
    conv = nn.Linear(1, 5)
    torch.nn.utils.prune.identity(conv, "weight")
    data = encode_graph(graph_of(nn.Sequential(conv)))
    decode_graph(data)
    masks = [i for i, entry in enumerate(data["tensors"]) if entry["data"].shape == (5, 1)]
    for index in masks:
        with pytest.raises(FileError, match="do not fit each other"):
            decode_graph(replaced(data, ("tensors", index, "data"), torch.ones(1, 99_999)))


# ---- what only a whole file has ----------------------------------------------------------------

TOP: dict[str, tuple[tuple[Step, ...], object, str]] = {
    "format": (("format",), "other-format-x", "does not begin as a file of ours"),
    "no_version": (("version",), None, "has no format version"),
    "text_version": (("version",), "1", "has no format version"),
    "newer": (("version",), 99, "install a newer groupfx"),
    "way": (("way",), "pickle", "holds no model"),
    "way_without_graph": (("way",), "modules", "holds no model"),
    "inputs": (("inputs",), {"a": 1}, "no list of tables"),
    "report": (("report",), {"a": torch.ones(2)}, "is a Tensor, which is no plain data"),
    "state": (("state",), {"a": "b"}, "not a plain tensor"),
    "escapes": (("groupfx",), "\x1b[2J" * 9, ""),
}


@pytest.mark.parametrize(("path", "new", "message"), TOP.values(), ids=TOP.keys())
def test_a_changed_file_is_refused(
    path: tuple[Step, ...], new: object, message: str, tmp_path: Path
) -> None:
    data = replaced(payload(nn.Sequential(nn.Conv2d(6, 4, 3)), tmp_path), path, new)
    torch.save(data, tmp_path / "bad.pt")
    if not message:
        assert "\x1b" not in read(tmp_path / "bad.pt").info.groupfx
        return
    with pytest.raises(FileError, match=message):
        read(tmp_path / "bad.pt")


@pytest.mark.parametrize("where", [("report",), ("modules", 0, "fields", "stride"), ("tensors", 0)])
def test_a_pickle_inside_is_not_run(where: tuple[Step, ...], tmp_path: Path, watched: Path) -> None:
    data = payload(nn.Sequential(nn.Conv2d(6, 4, 3)), tmp_path)
    torch.save(replaced(data, where, Call(os.mkdir, "harm")), tmp_path / "bad.pt")
    for reader in (read, read_model):
        with pytest.raises(FileError, match=r"asks for posix\.mkdir"):
            reader(tmp_path / "bad.pt")


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def doubled(value: object, times: int) -> object:
    for _ in range(times):
        value = [value, value]
    return value


def shared_nodes(data: dict[str, Any], times: int) -> dict[str, Any]:
    """One list of nodes, named by many graphs."""
    nodes = [
        {"op": "placeholder", "name": f"x_{i}", "target": f"x_{i}", "args": (), "kwargs": {}}
        for i in range(2000)
    ]
    graph = data["modules"][-1]["graph"]
    graph = graph | {"nodes": [*nodes, graph["nodes"][-1] | {"args": ({"node": "x_0"},)}]}
    entries = [data["modules"][-1] | {"graph": graph, "children": {}} for _ in range(times)]
    return data | {"modules": [*data["modules"], *entries]}


def doubled_modules(data: dict[str, Any]) -> dict[str, Any]:
    plain = {"class": "torch.nn.Sequential", "training": True, "children": {}}
    entries = list(data["modules"])
    for _ in range(60):
        below = len(entries) - 1
        entries.append(plain | {"children": {"0": below}})
        entries.append(plain | {"children": {"0": below, "1": below + 1}})
    return data | {"modules": entries}


SHARING: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "report": lambda data: data | {"report": {"a": doubled("x", 30)}},
    "inputs": lambda data: data | {"inputs": [{"a": doubled("x", 30)}]},
    "argument": lambda data: replaced(
        data, ("modules", 1, "graph", "nodes", 1, "kwargs"), {"a": doubled("x", 30)}
    ),
    "field": lambda data: replaced(data, ("modules", 0, "fields", "stride"), doubled("x", 30)),
    "deep": lambda data: data | {"report": {"a": nested(200)}},
    "nodes": lambda data: shared_nodes(data, 3000),
    "modules": doubled_modules,
}


@pytest.mark.parametrize("share", one_in(3, SHARING))
def test_a_small_file_that_unfolds_is_refused_without_unfolding_it(
    share: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    data = payload(nn.Sequential(nn.Conv2d(6, 4, 3)), tmp_path)
    torch.save(share(data), path := tmp_path / "bad.pt")
    assert path.stat().st_size < 1_500_000

    def refused() -> None:
        with pytest.raises(FileError, match=r"unfolds|nested|damaged"):
            read(path)

    refused()
    # Unfolded, most of them are a thousand million values; 19 million steps are the most here.
    assert steps_of(refused) < 40_000_000


def test_any_value_anywhere_is_an_error_or_harmless(tmp_path: Path, watched: Path) -> None:
    data = payload(CASES["split"](), tmp_path)
    odd: tuple[object, ...] = (None, -1, HUGE, 0.5, True, [], {}, (), "", "x", {"node": "x"},
        {"tensor": 0}, {"slice": [1]}, torch.ones(2), nn.Parameter(torch.ones(2)))  # fmt: skip
    chance = random.Random(13)
    everywhere = [path for path in places(data, (object,)) if path]
    for _ in range(400):
        new = chance.choice(odd)
        tampered = replaced(data, chance.choice(everywhere), new)
        run(tampered, tmp_path / "bad.pt", call=new is not HUGE)


@pytest.mark.long
def test_any_value_anywhere_many_times(tmp_path: Path, watched: Path) -> None:
    chance = random.Random(17)
    for case in ("split", "arguments", "parametrized", "legacy_hooks", "recurrent"):
        data = payload(CASES[case](), tmp_path)
        everywhere = [path for path in places(data, (object,)) if path]
        for _ in range(1000):
            new = chance.choice([*INJECTIONS, None, 0, HUGE, [], {}, ()])
            tampered = replaced(data, chance.choice(everywhere), new)
            run(tampered, tmp_path / "bad.pt", call=new is not HUGE)
