"""What a process is given to do, and what it says: pickles to it, lines of JSON from it.

It runs code of others, so that nothing that comes back from it is unpickled.
"""

from __future__ import annotations

import json
import pickle
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .entries import Entry

_LENGTH = struct.Struct("=Q")


@dataclass(frozen=True)
class Task:
    """A model, the digest of all that its result depends on, and the folder for its files.

    `size` is an estimate of what it takes, in seconds, by which the longest go first.
    """

    entry: Entry
    key: str
    folder: Path
    size: float = 0.0


@dataclass(frozen=True)
class Job:
    """Tasks of one process, in their order: one model, or checkpoints of one network."""

    tasks: Sequence[Task]
    threads: int = 1

    @property
    def size(self) -> float:
        """What they take together."""
        return sum(task.size for task in self.tasks)


def send_job(channel: socket.socket, job: Job) -> None:
    """For the other end to `receive_job`."""
    data = pickle.dumps(job)
    channel.sendall(_LENGTH.pack(len(data)) + data)


def receive_job(channel: socket.socket) -> Job:
    """What `send_job` sent."""
    (length,) = _LENGTH.unpack(_received(channel, _LENGTH.size))
    job: Job = pickle.loads(_received(channel, length))
    return job


def _received(channel: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = channel.recv(length - len(found))
        if not part:
            raise EOFError("the runner has ended")
        found += part
    return bytes(found)


def say(channel: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a line of JSON."""
    channel.sendall(json.dumps(message).encode() + b"\n")
