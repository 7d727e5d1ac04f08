"""Forms are chosen as on a CPU with AVX-512, whatever runs the tests."""

import pytest

from groupfx.deploy.running import blocked_layout


@pytest.fixture(autouse=True)
def wide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 channels."""
    monkeypatch.setattr(blocked_layout, "block_width", lambda: 16)
