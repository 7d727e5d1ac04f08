"""Old objects are out of the collector's rounds within, and back behind it."""

import gc

import pytest

from groupfx.running.alone import alone
from groupfx.running.collecting import new_objects_alone


@pytest.fixture(autouse=True)
def _nothing_frozen() -> None:
    assert gc.get_freeze_count() == 0


def test_they_are_back_behind_it_and_behind_an_error() -> None:
    with new_objects_alone():
        assert gc.get_freeze_count() > 10_000
        with new_objects_alone():
            pass
        assert gc.get_freeze_count() > 10_000, "the inner one is not to end it"
    assert gc.get_freeze_count() == 0
    with pytest.raises(KeyError), new_objects_alone():
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_the_user_froze_stays_so() -> None:
    gc.freeze()
    try:
        with new_objects_alone():
            pass
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


def test_new_garbage_is_collected_within() -> None:
    class Node:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            gone.append(1)

    gone: list[int] = []
    with new_objects_alone():
        Node()
        gc.collect()
        assert gone == [1]


def test_whoever_is_alone_is_so_with_new_objects() -> None:
    assert alone(gc.get_freeze_count)() > 10_000
    assert gc.get_freeze_count() == 0
