"""The command line at a terminal, in a pipe, and when it is stopped: real processes."""

import fcntl
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from rich.text import Text

from groupfx.cli.text.numbers import plural, short, size
from groupfx.cli.text.table import Column, Table, printable, table_lines
from tests.cli.runs import SHAPE, STEERING, contents, grouped_model, save

ROOT = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-m", "groupfx"]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**extra: str) -> dict[str, str]:
    """This environment without what steers the output; the checkout is imported from anywhere."""
    kept = {name: value for name, value in os.environ.items() if name not in STEERING}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **extra}


def at_terminal(*argv: object, folder: Path, columns: int, **extra: str) -> tuple[int, str]:
    """Run at a pseudo terminal of that many columns; the exit code and all that was shown."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [*MAIN, *map(str, argv)],
        cwd=folder,
        env=environment(**extra),
        stdin=inner,
        stdout=inner,
        stderr=inner,
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            read = os.read(outer, 65536)
        except OSError:  # what Linux says at the end
            break
        if not read:
            break
        shown += read
    os.close(outer)
    return process.wait(), shown.decode().replace("\r\n", "\n")


def after_the_bar(shown: str) -> list[str]:
    """The lines that stay on the screen, from the one that names the file."""
    plain = CONTROL.sub("", shown)
    return plain[plain.rindex("net.pt: ") :].splitlines()


def test_a_terminal_of_80_columns(tmp_path: Path) -> None:
    save(tmp_path / "net.pt", grouped_model())
    argv = ("rewrite", "net.pt", "--input-shape", SHAPE)
    code, shown = at_terminal(*argv, folder=tmp_path, columns=80)
    assert code == 0
    assert "Rewriting and checking" in shown
    assert "\x1b[32midentical" in shown
    lines = after_the_bar(shown)
    assert max(map(len, lines)) <= 80
    assert "stem  grouped 3                Conv2d 3x3 6->15   3 x 2->5 + BN  identical" in lines


def test_a_terminal_without_colour(tmp_path: Path) -> None:
    save(tmp_path / "net.pt", grouped_model())
    argv = ("inspect", "net.pt", "--input-shape", SHAPE)
    code, shown = at_terminal(*argv, folder=tmp_path, columns=80, NO_COLOR="1")
    assert code == 0
    assert "stem  grouped 3" in shown
    assert COLOUR.findall(shown) == []
    assert max(map(len, after_the_bar(shown))) <= 80


def test_an_error_at_a_terminal_is_broken_between_words(tmp_path: Path) -> None:
    argv = ("rewrite", "net.pt", "-p", "split-grouped-con", "--way", "trace")
    (tmp_path / "net.pt").touch()
    code, shown = at_terminal(*argv, folder=tmp_path, columns=50)
    assert code == 2
    lines = CONTROL.sub("", shown).splitlines()
    assert max(map(len, lines)) < 50
    assert " ".join(line.strip() for line in lines).startswith(
        "groupfx: error: there is no pass 'split-grouped-con': did you mean 'split-grouped-conv'?"
    )
    assert "\x1b[31m" in shown


def piped(*argv: object, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run with both streams in pipes."""
    command = [*MAIN, *map(str, argv)]
    return subprocess.run(
        command, cwd=folder, env=environment(**extra), capture_output=True, text=True, check=False
    )


def test_a_pipe_gets_plain_rows_of_any_length(tmp_path: Path) -> None:
    """In its own encoding, whatever that lacks."""
    model: torch.nn.Module = grouped_model()
    for level in range(12):
        model = torch.nn.Sequential(OrderedDict({f"a_long_name_{level}": model}))
    save(tmp_path / "größe.pt", model)
    argv = ("inspect", "größe.pt", "--input-shape", SHAPE)
    done = piped(*argv, folder=tmp_path, COLUMNS="40", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gr\\xf6\\xdfe.pt: a pickled Sequential")
    assert CONTROL.findall(done.stdout) == []
    name = ".".join(f"a_long_name_{level}" for level in reversed(range(12))) + ".stem"
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"{name}  ")]
    assert row.endswith("reorders")


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    save(tmp_path / "net.pt", grouped_model())
    command = f"{sys.executable} -m groupfx rewrite net.pt --input-shape {SHAPE}"
    script = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (tmp_path / "net.groupfx.pt").exists()


# A process that was started in the background ignores Ctrl-C, and so do those that it starts.
HEEDS_INTERRUPTS = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)


def test_an_interrupt_stops_it(tmp_path: Path) -> None:
    torch.save(grouped_model().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "def make():\n"
        "    print('started', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
    )
    before = contents(tmp_path)
    argv = ["rewrite", "weights.pt", "--arch", "slow.py:make", "--json", "report.json"]
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDS_INTERRUPTS, *MAIN[1:], *argv],
        cwd=tmp_path,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (130, "", "groupfx: interrupted\n")
    assert contents(tmp_path) == before


# What tables and numbers look like.

WIDE = Table(
    [Column("site"), Column("kind"), Column("many", right=True)],
    [("layer1.conv", "grouped", "1,234"), ("x", "depthwise", "7")],
)
NARROW = Table(
    [Column("site"), Column("many", right=True)], [("layer1.conv", "1k"), ("x", Text("7"))]
)


def shown(width: int | None) -> list[str]:
    return [line.plain for line in table_lines([WIDE, NARROW], width)]


def test_the_widest_form_that_fits_is_shown() -> None:
    wide = ["site         kind        many", "layer1.conv  grouped    1,234"]
    wide.append("x            depthwise      7")
    assert shown(None) == wide
    assert shown(29) == wide
    narrow = ["site         many", "layer1.conv    1k", "x               7"]
    assert shown(28) == narrow
    assert shown(17) == narrow


def test_where_nothing_fits_the_rows_are_stacked_and_whole() -> None:
    stacked = ["site", "    many", "layer1.conv", "      1k", "x", "       7"]
    assert shown(16) == stacked
    assert shown(3) == stacked


LONG = ".".join(["backbone", "layer4", "bottlenecks", "0", "branches"] * 3)[:90]


def hostile(rows: int, columns: int, generator: random.Random) -> Table:
    """Names of 90 characters, counts of six digits, and cells of several words."""
    words = ["grouped", "123,456", "Conv2d 3x3 512->1024", "64 x 8->16 + BN", "within bound*", "-"]
    words.append(
        "bucketed: 17 convolutions of 3 to 64 channels, one gather in front and one behind"
    )
    made = [(LONG, *(generator.choice(words) for _ in range(columns - 1))) for _ in range(rows)]
    return Table([Column(f"column {k}", right=k % 2 == 1) for k in range(columns)], made)


@pytest.mark.parametrize("width", [40, 80, 132])
@pytest.mark.parametrize("columns", [1, 2, 5, 8, 13])
def test_no_table_is_wider_than_the_terminal(width: int, columns: int) -> None:
    """But for a name, which is not broken, so that it can be copied."""
    table = hostile(7, columns, random.Random(columns))
    lines = [line.plain for line in table_lines([table], width)]
    assert all(len(line) <= width for line in lines if line != LONG)
    assert lines.count(LONG) == (7 if width < 132 or columns > 2 else lines.count(LONG))
    shown = re.sub(r"\s+", " ", " ".join(lines))
    for row in table.rows:
        for cell in row:
            assert str(cell) in shown
    widths = [len(line.plain) for line in table_lines([table], None)]
    assert columns < 5 or max(widths) > width  # or it says nothing


def test_a_column_without_a_value_is_left_out() -> None:
    table = Table([Column("a"), Column("b"), Column("c")], [("1", "", "3"), ("4", "", "6")])
    assert [line.plain for line in table_lines([table], None)] == ["a  c", "1  3", "4  6"]


def test_a_name_cannot_steer_the_terminal() -> None:
    assert printable("conv\x1b[2J\x07") == "conv\\x1b[2J\\x07"
    assert printable("grün 卷积") == "grün 卷积"
    row = table_lines([Table([Column("a"), Column("b")], [("\x1b[31m", "卷积"), ("x", "y")])], None)
    assert [line.plain for line in row] == ["a         b", "\\x1b[31m  卷积", "x         y"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (12345, "12.3k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (4_100_000_000, "4.1G"),
    ],
)
def test_short_numbers(number: int | None, text: str) -> None:
    assert short(number) == text


def test_sizes_and_plurals() -> None:
    assert [size(n) for n in (17, 5790, 3_910_000)] == ["17 bytes", "5.79 kB", "3.91 MB"]
    assert [plural(n, "site") for n in (0, 1, 1234)] == ["0 sites", "1 site", "1,234 sites"]
    assert [plural(n, "branch") for n in (1, 2)] == ["1 branch", "2 branches"]
