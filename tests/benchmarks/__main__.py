"""All benchmarks, one table each.

    python -m tests.benchmarks [--quick] [NAME ...]
    python -m tests.benchmarks speed-table [--rows REGEX] [--kept FILE.jsonl]

Times are medians over rounds after a warm-up. Where two sides are compared, they take turns in one
process, and the figure to quote is the ratio: machines are shared and noisy.
"""

import argparse
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path

import torch
from rich.console import Console

from . import (
    any_model,
    branches,
    check_share,
    export_time,
    files,
    files_of_a_call,
    fleet,
    fold_speed,
    fold_time,
    form_speed,
    freeze_time,
    frozen_speed,
    inspect_cost,
    page,
    peak_memory,
    quantised,
    rewrite_time,
    self_race,
    source1_groups,
    speed_table,
    validate_time,
)

BENCHMARKS: dict[str, Callable[[Console, bool], None]] = {
    "any-model": any_model.run,
    "rewrite-time": rewrite_time.run,
    "check-share": check_share.run,
    "peak-memory": peak_memory.run,
    "inspect-cost": inspect_cost.run,
    "files": files.run,
    "files-of-a-call": files_of_a_call.run,
    "fleet": fleet.run,
    "export-time": export_time.run,
    "source1-groups": source1_groups.run,
    "fold-time": fold_time.run,
    "fold-speed": fold_speed.run,
    "freeze-time": freeze_time.run,
    "frozen-speed": frozen_speed.run,
    "form-speed": form_speed.run,
    "speed-table": speed_table.run,
    "self-race": self_race.run,
    "quantised": quantised.run,
    "branches": branches.run,
    "validate-time": validate_time.run,
    "page": page.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of groupfx.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)} (all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that they run")
    parser.add_argument("--rows", default="", help="of speed-table: those where this is found")
    parser.add_argument("--seconds", type=float, default=60, help="of speed-table: for each row")
    parser.add_argument("--minutes", type=float, default=inf, help="of speed-table: in all")
    parser.add_argument("--kept", type=Path, help="of speed-table: rows that are done, as JSON")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}"
        )
    console = Console()
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    table = partial(
        speed_table.run,
        pattern=options.rows,
        kept=options.kept,
        limit=options.seconds,
        minutes=options.minutes,
    )
    for name in options.names or BENCHMARKS:
        run = table if name == "speed-table" else BENCHMARKS[name]
        run(console, options.quick)


if __name__ == "__main__":
    main()
