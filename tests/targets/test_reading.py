"""Files of facts that are wrong: the file, the key and the remedy are in the message."""

from pathlib import Path

import pytest

from groupfx.errors import FileError
from groupfx.targets.reading import read_target

HEAD = """
schema = "groupfx.target/1"
name = "mine"
title = "mine"
date = 2026-11-28
passes = []
methods = ["A"]
"""
FACT = """
[[fact]]
topic = "groups"
verdict = "accepted"
text = "as it is"
source = "here"
version = "1"
date = 2026-11-28
"""
BROKEN = {
    "syntax": ("name = ", r"mine\.toml is no TOML: Invalid value \(at end of"),
    "not utf-8": (b"\xff\xfe", r"mine\.toml is no TOML"),
    "no schema": ('name = "mine"', "schema: it is missing: give a text"),
    "another schema": (
        HEAD.replace("target/1", "target/2"),
        "schema is 'groupfx.target/2', and this groupfx reads 'groupfx.target/1'",
    ),
    "another name": (HEAD.replace('"mine"\nt', '"yours"\nt'), "call it yours.toml"),
    "unknown key": (HEAD + 'tittle = "x"', r"tittle: there is no such key: did you mean 'title'\?"),
    "passes no list": (HEAD.replace("[]", '"split"'), "passes: 'split' is not a list of texts"),
    "passes twice": (HEAD.replace("[]", '["a", "a"]'), "passes: it names one twice"),
    "date a text": (HEAD.replace("2026-11-28", '"2026"'), "date: '2026' is not a date"),
    "date with a time": (HEAD.replace("2026-11-28", "2026-11-28T10:00:00"), "is not a date"),
    "forms": (HEAD + 'forms = "fast"', "forms: 'fast' is none of its values: did you mean 'fast"),
    "place": (HEAD + "place = -1", "place: -1 is not a whole number from 0"),
    "place true": (HEAD + "place = true", "place: True is not a whole number"),
    "fact no table": (HEAD + "fact = 3", r"fact: 3 is not tables, each under \[\[fact\]\]"),
    "no topic": (HEAD + "[[fact]]", r"mine\.toml: fact 1: topic: it is missing"),
    "topic": (
        HEAD + FACT.replace('"groups"', '"group"'),
        "fact 1: topic: 'group' is none of its values: did you mean 'groups'",
    ),
    "second fact": (HEAD + FACT + FACT.replace("text", "txt"), r"fact 2 \(groups\): text: it is m"),
    "verdict": (
        HEAD + FACT.replace("accepted", "ok"),
        r"fact 1 \(groups\): verdict: 'ok' is none of its values: choose one of accepted, slow",
    ),
    "no source": (HEAD + FACT.replace('source = "here"', ""), "source: it is missing"),
    "empty source": (HEAD + FACT.replace('"here"', '" "'), "source: ' ' is not a text that is not"),
    "no date": (HEAD + FACT.replace("date =", "day ="), "date: it is missing"),
    "method": (
        HEAD + FACT + 'methods = ["B"]',
        r"methods: 'B' is none of the target's methods \(A\)",
    ),
    "fix of nothing": (HEAD + FACT + 'fix = ["x"]', "fix: what is accepted needs none"),
    "condition": (
        HEAD + FACT + "where = { dim = [2] }",
        r"fact 1 \(groups\): where: dim: there is no such key: did you mean 'dims'\?",
    ),
    "condition's value": (
        HEAD + FACT + 'where = { kind = ["deptwise"] }',
        r"where: kind: 'deptwise' is none of its values: did you mean 'depthwise'",
    ),
    "condition no list": (HEAD + FACT + "where = { dims = 2 }", "dims: 2 is not a list of whole"),
    "condition empty": (HEAD + FACT + "where = { kind = [] }", "kind: an empty list fits every"),
    "condition of an operation": (
        HEAD + FACT + "where = { rank_above = 4 }",
        "rank_above: it does not go with a fact on a convolution",
    ),
    "condition of a convolution": (
        HEAD + FACT.replace("groups", "gather") + "where = { dims = [2] }",
        "dims: it does not go with a fact on an operation",
    ),
    "multiple of 0": (
        HEAD + FACT + "where = { multiple_of = 0 }",
        "0 is not a whole number from 1",
    ),
    "truth": (HEAD + FACT + "where = { dilated = 1 }", "dilated: 1 is not true or false"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_is_told(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileError, match=message) as raised:
        read_target(path)
    assert str(path) in str(raised.value)


def test_a_file_without_facts_and_one_with_all_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD)
    assert read_target(path).facts == ()
    path.write_text(HEAD + FACT + 'methods = ["A"]\nwhere = { dims = [1, 2], multiple_of = 8 }')
    (fact,) = read_target(path).facts
    assert (fact.where.dims, fact.where.multiple_of, fact.methods) == ((1, 2), 8, ("A",))


@pytest.mark.parametrize("name", ["gone.toml", "."], ids=["missing", "a folder"])
def test_what_cannot_be_read_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: "):
        read_target(tmp_path / name)


def test_a_large_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(FileError, match="more than 1,048,576 bytes"):
        read_target(path)
