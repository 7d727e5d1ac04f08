"""What is chosen for one site, as if nothing were known of its neighbours."""

from dataclasses import replace

from groupfx.plan.around import Around
from groupfx.plan.blocks import BlockStructure
from groupfx.plan.choice import Choice
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.machine import Machine
from groupfx.plan.streams import End, Step, Stream
from groupfx.plan.together import choose_together, site_options


def chosen(
    structure: BlockStructure,
    *works: Work,
    machine: Machine | None = None,
    around: Around | None = None,
    learned: bool = True,
) -> Choice:
    """The form of a site between two convolutions in the blocked layout, an activation behind it.

    `works` differ in their batch.
    """
    here, work = machine or Machine(), works[0]
    conv = End(0, blocked=work.blocked and here.block > 0, fuses=True)
    end = End(1, blocked=conv.blocked, fuses=True)
    site, activation = End(0, "site"), Step((0,), 1)
    read, given = work.read_positions, work.positions
    before = Stream(structure.in_channels, read, work.blocked, (), (conv,), (site,))
    behind = Stream(structure.out_channels, given, work.blocked, (activation,), (site,), (end,))
    streams = [
        (
            stream,
            [
                OnnxRuntime(Work(1, stream.positions, batch=w.batch, blocked=w.blocked), here)
                for w in works
            ],
        )
        for stream in (before, behind)
    ]
    options = site_options(structure, works, here, around, learned=learned)
    together = choose_together({"site": options}, streams)
    found = together.choices["site"]
    # With what is moved in front of it and behind.
    return replace(found, time=together.time, untouched=together.untouched)
