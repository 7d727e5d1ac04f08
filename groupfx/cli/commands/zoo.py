"""`groupfx zoo`: many models, each in a process of its own, and a table of what came of them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ...errors import UsageError
from ...fleet import (
    Entry,
    FleetOptions,
    FleetResult,
    Limits,
    ModelResult,
    Reading,
    Work,
    memory_size,
    read_fleet,
    run_fleet,
)
from ..input.files import check_folder, write_json
from ..input.shown import check_page
from ..input.zoo import ZooCommand
from ..text.page_file import write_page_file
from ..text.screen import Screen
from ..text.zoo_text import show_fleet, told_line


def run_zoo(options: ZooCommand) -> int:
    """Do it, and return the exit code. Everything that can be refused early is."""
    check_folder(options.told.json, "--json")
    check_page(options.shown.html, {"--json": options.told.json})
    defaults, chosen = _defaults(options), _options(options)
    place = options.place
    fleet = read_fleet(options.manifests, defaults, apart_from=place)
    screen = Screen.of(options.told)
    number = len(fleet.entries) if chosen.shard is None else len(fleet.shard(*chosen.shard).entries)
    with _stopped_by_signals() as stopped, screen.work("Running", what="models") as progress:
        done = 0

        def told(result: ModelResult) -> None:
            nonlocal done
            done += 1
            progress(done, number)
            screen.log(told_line(result))

        result = run_fleet(fleet, place, chosen, told=told, stop=stopped.is_set)
    show_fleet(screen, result)
    if options.told.json is not None:
        write_json(options.told.json, result.to_dict())
    write_page_file(screen, options.shown.html, result, options.place.name)
    return _exit_code(result, stopped)


class _Stopped(threading.Event):
    """Set by the first signal that asks us to stop; `by` is which."""

    by: int = signal.SIGINT


@contextmanager
def _stopped_by_signals() -> Iterator[_Stopped]:
    """The first Ctrl-C or SIGTERM ends the fleet in order; the second ends the program."""
    stopped = _Stopped()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.by = number
        stopped.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(result: FleetResult, stopped: _Stopped) -> int:
    if result.interrupted:
        return 128 + stopped.by
    return 0 if not result.failures else 1


def _defaults(options: ZooCommand) -> Entry:
    """What holds for every model that says nothing else."""
    file, chosen = options.file, options.chosen
    reading = Reading(
        input_shape=tuple(file.input_shape or ()),
        arch=file.arch,
        arch_args=file.arch_args,
        key=file.key,
        trust_pickle=file.trust_pickle,
        python_path=tuple(file.python_path or ()),
    )
    work = Work(
        passes=None if chosen.passes is None else tuple(chosen.passes),
        target=chosen.target,
        way=chosen.way,
        verify=not options.no_verify,
        save=options.save,
        export=options.export,
        validate=options.validate,
        tune=options.tune,
        budget=options.budget,
    )
    memory = None if options.memory is None else memory_size(options.memory)
    for name, seconds in (("--time", options.time), ("--budget", options.budget)):
        if not 0 < seconds < float("inf"):
            raise UsageError(f"{name} {seconds:g}: give a number of seconds")
    limits = Limits(time=options.time, memory=memory)
    return Entry(name="", model=Path(), reading=reading, work=work, limits=limits)


def _options(options: ZooCommand) -> FleetOptions:
    modes = {"failed": options.retry, "environment": options.retry_environment}
    chosen = [name for name, wanted in {**modes, "all": options.again}.items() if wanted]
    if len(chosen) > 1:
        raise UsageError("give one of --retry, --retry-environment and --again")
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: it must be at least 1")
    return FleetOptions(
        workers=options.jobs,
        again=chosen[0] if chosen else "new",  # type: ignore[arg-type]
        shard=None if options.shard is None else _shard(options.shard),
        joined=tuple(options.join or ()),
        scheduler=options.scheduler,
    )


def _shard(text: str) -> tuple[int, int]:
    place, _, number = text.partition("/")
    if not (place.isascii() and place.isdigit() and number.isascii() and number.isdigit()):
        raise UsageError(f"--shard {text!r}: write 1/8 for the first of eight parts")
    return int(place), int(number)
