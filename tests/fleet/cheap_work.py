"""Work that takes no torch and 20 ms a model, and leaves a word of each before its result."""

import os
import socket
import time

from groupfx.fleet import Outcome
from groupfx.fleet.task import receive_job, say


def prepare(*, onnx: bool) -> None:
    """Nothing has to be loaded."""


def work_through(channel: socket.socket) -> None:
    for place, task in enumerate(receive_job(channel).tasks):
        say(channel, {"begin": place})
        time.sleep(0.02)
        with task.entry.model.parent.joinpath("ended").open("a") as file:
            file.write(f"{task.entry.name}\n")
            file.flush()
            os.fsync(file.fileno())
        say(channel, {"end": place, "outcome": Outcome(seconds=0.02).to_dict()})
