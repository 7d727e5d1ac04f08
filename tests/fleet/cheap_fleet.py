"""`python -m tests.fleet.cheap_fleet FOLDER OUT`: a fleet whose models cost nothing."""

import sys
from pathlib import Path

from groupfx.fleet import Entry, FleetOptions, read_fleet, run_fleet
from groupfx.fleet.engine import Engine

ENGINE = Engine(1, 10**9, worker="tests.fleet.cheap_work")

if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    fleet = read_fleet([folder], Entry(name="", model=Path()))
    run_fleet(fleet, out, FleetOptions(workers=1), engine=ENGINE)
