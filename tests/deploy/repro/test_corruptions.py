"""Every kind of wrong site of a small model is shown by the site, or by one branch of it."""

import runpy
from pathlib import Path

import pytest

from tests.deploy.validate.corruption_draws import Draws
from tests.deploy.validate.corruption_models import TINY

pytestmark = pytest.mark.long


def test_each_kind_of_corruption_is_shown_by_its_site_alone(tmp_path: Path) -> None:
    draws = Draws(TINY, tmp_path)
    left = {}
    for number, kind in enumerate(draws.kinds):
        wrong = draws.draw(kind, number)
        script = draws.verdict(wrong.proto).save_repro(tmp_path / f"repro{number}")
        if script is None:
            left[kind] = "nothing was written"
            continue
        code = runpy.run_path(str(script))["main"]()
        if code != 1 or f"the site {wrong.site}" not in script.read_text():
            left[kind] = f"exit code {code}, {script.read_text().splitlines()[0]}"
    assert left == {}
    # What is right is not shown at all.
    assert draws.verdict(draws.honest).save_repro(tmp_path / "honest") is None
