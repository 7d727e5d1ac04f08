"""Manifests: what they may say, and what is refused of them, by itself or as a whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groupfx.errors import FileError, UsageError
from groupfx.fleet import Entry, Limits, Refused, Work, memory_size, read_fleet
from groupfx.fleet.manifest import _KEYS

DEFAULTS = Entry(name="", model=Path(), limits=Limits(time=5))


def write(folder: Path, text: str, name: str = "zoo.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> tuple[Entry | Refused, ...]:
    return read_fleet([path], DEFAULTS).entries


def one(folder: Path, text: str) -> Entry:
    (entry,) = read(write(folder, text))
    assert isinstance(entry, Entry), entry
    return entry


def test_a_list_of_paths_from_the_folder_of_the_manifest(tmp_path: Path) -> None:
    first, second, third = read(write(tmp_path, "- a.pt\n- nets.py:wide\n- torchvision.models:x\n"))
    assert [first.name, second.name, third.name] == ["a.pt", "nets.py:wide", "torchvision.models:x"]
    assert [str(each.model) for each in (first, second, third)] == [
        str(tmp_path / "a.pt"),
        str(tmp_path / "nets.py:wide"),
        "torchvision.models:x",
    ]
    assert isinstance(first, Entry)
    assert first.limits.time == 5


def test_an_entry_says_all_that_the_commands_take(tmp_path: Path) -> None:
    entry = one(
        tmp_path,
        """
- name: über
  factory: nets.py:wide
  arch_args: {width: 2}
  input_shape: [2, 3, 8, 8]
  passes: [split-grouped-conv]
  export: true
  verify: false
  opset: 19
  time: 7
  memory: 2 GiB
""",
    )
    assert (entry.name, entry.reading.arch_args) == ("über", '{"width": 2}')
    assert entry.reading.input_shape == ("2,3,8,8",)
    assert entry.reading.python_path == (tmp_path,)
    assert entry.work == Work(passes=("split-grouped-conv",), export=True, verify=False, opset=19)
    assert entry.limits == Limits(time=7.0, memory=2 << 30)


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    content: list[Any] = [
        "a.pt",
        {"file": "b.pth", "arch": "n.py:f", "input_shape": ["2,3", "x=2,5"]},
    ]
    listed = read(write(tmp_path, json.dumps(content), "zoo.json"))
    assert read(write(tmp_path, json.dumps(content))) == listed
    assert isinstance(listed[1], Entry)
    assert listed[1].reading.arch == str(tmp_path / "n.py:f")
    assert listed[1].reading.input_shape == ("2,3", "x=2,5")


def test_defaults_hold_for_what_is_not_said(tmp_path: Path) -> None:
    text = "defaults: {target: plinio, time: 9}\nmodels:\n- a.pt\n- {model: b.pt, passes: x}\n"
    first, second = read(write(tmp_path, text))
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)
    assert (first.work.target, first.work.passes, first.limits.time) == ("plinio", None, 9)
    # What is said of the one takes the place of the other.
    assert (second.work.target, second.work.passes) == (None, ("x",))


SHAPES = {
    "text": ("'2,3,8'", ("2,3,8",)),
    "sizes": ("[2, 3, 8]", ("2,3,8",)),
    "texts": ("['2,3', 'x=2,5']", ("2,3", "x=2,5")),
    "lists": ("[[2, 3], [2, 5]]", ("2,3", "2,5")),
    "by_name": ("{x: [2, 3], ids: 'int64:2,7'}", ("x=2,3", "ids=int64:2,7")),
}


@pytest.mark.parametrize(("given", "shapes"), SHAPES.values(), ids=SHAPES)
def test_shapes_of_inputs(tmp_path: Path, given: str, shapes: tuple[str, ...]) -> None:
    assert one(tmp_path, f"- {{file: a.pt, input_shape: {given}}}").reading.input_shape == shapes


REFUSED = {
    "unknown_key": ("{model: a.pt, inptu_shape: 2}", "unknown key 'inptu_shape': did you mean"),
    "no_model": ("{name: a}", "give either a 'file', or a 'factory'"),
    "both": ("{model: a.pt, factory: b.py:c}", "give either a 'file'"),
    "a_number": ("12", "give a path or a mapping, not 12"),
    "null": ("null", "not nothing"),
    "list": ("[a]", "not a list"),
    "flag": ("{model: a.pt, export: maybe}", "export: this is to be true or false, not a text"),
    "seconds": ("{model: a.pt, time: -1}", "time: this is to be a number of seconds"),
    "not_a_number": ("{model: a.pt, time: .nan}", "time: this is to be a number of seconds"),
    "forever": ("{model: a.pt, time: 1" + "0" * 400 + "}", "time: this is to be a number of sec"),
    "all_memory": ("{model: a.pt, memory: 1" + "0" * 400 + "GB}", "is no size"),
    "half_a_size": ("{model: a.pt, input_shape: [2, 2.5]}", "a shape is to be written as 2,3,8,8"),
    "no_shape": ("{model: a.pt, input_shape: 3}", "a shape is to be written as 2,3,8,8"),
    "memory": ("{model: a.pt, memory: 4}", "memory: this is to be a size such as 4GB"),
    "unit": ("{model: a.pt, memory: 4 apples}", "memory '4 apples' is no size"),
    "way": ("{model: a.pt, way: up}", "'up' is none of auto, trace"),
    "arguments": ("{factory: a.py:b, arch_args: [1]}", "keyword arguments as a mapping"),
    "infinite": ("{factory: a.py:b, arch_args: {x: .inf}}", "cannot be written as JSON"),
    "two_ways": ("{model: a.pt, passes: [x], target: y}", "give passes or a target, not both"),
    "no_factory": ("{factory: a.pt}", "give file.py:factory or package.module:factory"),
    "key_of_a_number": ("{model: a.pt, 3: x}", "unknown key 3"),
    "no_file": ("{file: ''}", "its file is empty"),
    "unknown_alone": ("{fiel: a.pt}", "unknown key 'fiel': did you mean 'file'?"),
    "empty": ("{model: a.pt, name: ''}", "its name is empty"),
    "zero": ('{model: "a\\0.pt"}', "zero byte"),
}


@pytest.mark.parametrize(("entry", "said"), REFUSED.values(), ids=REFUSED)
def test_an_entry_is_refused_by_itself(tmp_path: Path, entry: str, said: str) -> None:
    first, second, third = read(write(tmp_path, f"- good.pt\n- {entry}\n- other.pt\n"))
    assert isinstance(first, Entry)
    assert isinstance(third, Entry)
    assert isinstance(second, Refused)
    assert said in second.message
    assert "the 2nd model: " in second.message


def test_two_models_of_one_name_are_told_apart_and_the_second_is_refused(tmp_path: Path) -> None:
    text = "- {name: a, model: x.pt}\n- {name: a, model: y.pt}\n- {name: 'a#2', model: z.pt}\n"
    first, second, third = read(write(tmp_path, text))
    assert isinstance(first, Entry)
    assert (first.name, second.name, third.name) == ("a", "a#2", "a#2#2")
    assert isinstance(second, Refused)
    assert "there is a model 'a' already, the 1st of them: give the 2nd another name" in (
        second.message
    )


WHOLE = {
    "yaml": ("zoo.yaml", "- a\n- {b: [\n- c\n", "line 3, column 1: this is not YAML"),
    "json": ("zoo.json", '[\n"a",\n"b" "c"]', "line 3, column 5: this is not JSON"),
    "twice": ("zoo.yaml", "- {model: a.pt, model: b.pt}", "the key 'model' is there twice"),
    "twice_json": ("zoo.json", '[{"model": 1, "model": 2}]', "has the key 'model' twice"),
    "text": ("zoo.yaml", "just a text", "is no list of models: this is a text"),
    "empty": ("zoo.yaml", "", "is no list of models: this is nothing"),
    "no_models": ("zoo.yaml", "[]", "lists no models"),
    "mapping": ("zoo.yaml", "{modles: [a.pt]}", "neither a list of models nor a mapping"),
    "of_defaults": ("zoo.yaml", "{defaults: {tme: 3}, models: [a.pt]}", "unknown key 'tme'"),
    "tag": ("zoo.yaml", "- !!python/object:os.system x", "could not determine a constructor"),
    "deep": ("zoo.json", "[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("name", "text", "said"), WHOLE.values(), ids=WHOLE)
def test_a_manifest_that_cannot_be_read(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(FileError) as caught:
        read(write(tmp_path, text, name))
    assert said in str(caught.value)
    assert name in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["name", "file", "model", "factory", *_KEYS])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES | st.dictionaries(KEYS, VALUES, max_size=4), min_size=1, max_size=3))
def test_whatever_a_manifest_holds_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: list[Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    entries = read(write(folder, json.dumps(content), "any.json"))
    assert len(entries) == len(content)
    assert len({entry.name for entry in entries}) == len(content)
    assert all(entry.message for entry in entries if isinstance(entry, Refused))


def test_a_manifest_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "zoo.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(FileError, match=r"zoo.yaml cannot be read"):
        read(tmp_path / "zoo.yaml")
    (tmp_path / "notes.txt").write_text("a.pt")
    with pytest.raises(FileError, match="is no manifest"):
        read(tmp_path / "notes.txt")
    with pytest.raises(FileError, match="there is no file"):
        read(tmp_path / "zoo.json")


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (entry,) = read(write(tmp_path, "- {factory: a.py:b, arch_args: &x {y: *x}}"))
    assert isinstance(entry, Refused)


def test_a_folder_is_searched_with_what_is_in_it(tmp_path: Path) -> None:
    for name in ("b.pt", "sub/a.onnx", "sub/deep/ä.PTH", "out/c.pt", ".hidden/d.pt", "notes.txt"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    (tmp_path / "link.pt").symlink_to("b.pt")
    (tmp_path / "broken.pt").symlink_to("nowhere")
    found = read_fleet([tmp_path], DEFAULTS, apart_from=tmp_path / "out")
    names = [entry.name for entry in found.entries]
    assert names == ["b.pt", "broken.pt", "link.pt", "sub/a.onnx", "sub/deep/ä.PTH"]
    with pytest.raises(FileError, match="has no models"):
        read_fleet([tmp_path / "out"], DEFAULTS, apart_from=tmp_path / "out")


def test_several_places_at_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.pt").touch()
    path = write(tmp_path, "[x.pt]")
    found = read_fleet([tmp_path / "one", path, Path("n.py:f"), Path("b.onnx")], DEFAULTS)
    assert [e.name for e in found.entries] == [
        str(tmp_path / "one/a.pt"),
        "x.pt",
        "n.py:f",
        "b.onnx",
    ]


def test_shards_are_the_fleet_in_parts(tmp_path: Path) -> None:
    fleet = read_fleet([write(tmp_path, "[a, b, c, d, e]")], DEFAULTS)
    parts = [fleet.shard(place, 3).entries for place in (1, 2, 3)]
    assert [[e.name for e in part] for part in parts] == [["a", "d"], ["b", "e"], ["c"]]
    for place in (0, 4):
        with pytest.raises(UsageError, match=f"--shard {place}/3"):
            fleet.shard(place, 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 kb", 1500), ("2MiB", 2 << 20), ("7b", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "-1GB", "0GB", "4XB", "1e3MB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        memory_size(text)
