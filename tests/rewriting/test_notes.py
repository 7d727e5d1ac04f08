"""A note is a text for everybody, and has a topic for whoever tells many as one."""

import copy
import json
import pickle

import pytest

from groupfx.rewriting import Note


@pytest.mark.parametrize(
    ("note", "text", "topic"),
    [
        (Note("ties", "blocks share inputs"), "ties: blocks share inputs", "ties"),
        (Note("no blocks"), "no blocks", "no blocks"),
        (Note("blocks", "3->4, 1->1", count=2), "2 blocks: 3->4, 1->1", "blocks"),
        (Note("of it: zeros", count=7), "7 of it: zeros", "of it: zeros"),
    ],
    ids=["detail", "topic-alone", "count", "colon-in-the-topic"],
)
def test_a_note_is_text_with_a_topic(note: Note, text: str, topic: str) -> None:
    assert (note, note.topic) == (text, topic)
    assert type(str(note)) is str  # what a file of plain data takes
    assert json.dumps([note]) == json.dumps([text])
    for copied in (copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert (copied, copied.topic) == (text, topic)
