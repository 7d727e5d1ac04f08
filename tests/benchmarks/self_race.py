"""A model raced against itself, many times: how often a difference is claimed that is none."""

from __future__ import annotations

import time
from functools import partial

import torch
from rich.console import Console

from examples.flgc_digits.network import mobilenet_v2_flgc
from groupfx.deploy import ExportOptions, prepare_export
from groupfx.running.inputs import ExampleInputs
from groupfx.tuning.backends import backend_named
from groupfx.tuning.race import race
from groupfx.tuning.ratios import compare


def run(console: Console, quick: bool) -> None:
    """Race a small model against itself, and count the claims of a difference."""
    number = 10 if quick else 100
    example = ExampleInputs((torch.randn(1, 3, 32, 32),))
    model = prepare_export(mobilenet_v2_flgc(8).eval(), example, ExportOptions(forms="whole")).model
    backend = backend_named("onnxruntime")
    feeds = {model.graph.inputs[0].name or "": example.args[0].numpy()}
    load = partial(backend.load, model, feeds, 1)
    verdicts = [
        compare(race([load, load], backend.clock(1), 2.0, time.perf_counter), 1).verdict
        for _ in range(number)
    ]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    console.print(f"a model raced against itself {number} times: {counted}")
