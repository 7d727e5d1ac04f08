"""What a user should know of a plan, as text."""

from __future__ import annotations


class Note(str):
    """A text, `count topic: detail`.

    Notes on many sites that share a `topic` differ in their numbers and details only, and may be
    told as one.
    """

    topic: str

    def __new__(cls, topic: str, detail: str = "", *, count: int | None = None) -> Note:
        """`topic` alone, with a number in front, or with more behind it."""
        text = topic if count is None else f"{count} {topic}"
        note = super().__new__(cls, f"{text}: {detail}" if detail else text)
        note.topic = topic
        return note
