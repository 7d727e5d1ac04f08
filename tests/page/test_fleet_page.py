"""A fleet as a page: each model, what came of it, and its time by its limit."""

from pathlib import Path

from groupfx.fleet import Failure, FleetResult, Limits, ModelResult, Outcome
from groupfx.page import page_of, render
from tests.page.pages import data_of

DONE = Outcome(sites=3, rewritten=2, skipped=1, verified=True, seconds=1.5, peak_memory=9_000_000)
UNPROVED = Outcome(sites=1, rewritten=1, skipped=0, seconds=0.5)
TIME = Outcome(
    failure=Failure("time", "/home/ann/x/net.py took more than 3 s", 2, "rewrite"), seconds=3.1
)


def result(name: str, outcome: Outcome) -> ModelResult:
    return ModelResult(
        name=name,
        model=f"/home/ann/{name}.pt",
        key="k",
        finished="2026-11-28T12:00:00Z",
        limits=Limits(time=3.0, memory=None),
        outcome=outcome,
    )


def fleet(**outcomes: Outcome) -> FleetResult:
    names = ("a", "b", "c", "d")
    results = {name: result(name, outcome) for name, outcome in outcomes.items()}
    return FleetResult(Path("/home/ann/nets.zoo"), names, results, frozenset("a"))


def test_each_model_has_a_row_and_no_place_or_time_of_day_is_told() -> None:
    shown = page_of(fleet(a=DONE, b=UNPROVED, c=TIME))
    assert shown.verdict == "2 of 4 models done, 1 time, 1 without a result"
    assert [(row.name, row.tone, row.verdict) for row in shown.sites] == [
        ("a", "good", "done"),
        ("b", "close", "done"),
        ("c", "bad", "failed"),
        ("d", "open", "no result"),
    ]
    assert [row.ratio for row in shown.sites][:2] == [0.5, 0.5 / 3]
    assert shown.sites[2].after.text == "net.py took more than 3 s"
    text = render(shown)
    assert "ann" not in text.replace("channel", "").replace("scanned", "")
    assert "2026-11" not in text
    assert "Models <span" in text
    assert [row[0] for row in data_of(text)["rows"]] == ["a", "b", "c", "d"]


def test_a_fleet_that_is_done_and_one_of_nothing() -> None:
    done = page_of(fleet(a=DONE, b=DONE, c=DONE, d=DONE))
    assert (done.tone, done.verdict) == ("good", "4 of 4 models done")
    none = page_of(FleetResult(Path("nets.zoo"), (), {}, frozenset()))
    assert (none.tone, none.verdict) == ("good", "0 of 0 models done")
    assert "There is no model to show." in render(none)
