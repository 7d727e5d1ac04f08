"""The way in: run a command, and turn whatever goes wrong into one message and an exit code."""

import contextlib
import errno
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import typer

from ..errors import FileError, GroupfxError, InternalError, ModelError, kind_and_line
from .app import COMMANDS, app
from .input.files import PROGRAM

# The root of what typer raises for a misuse. It has a name of typer's own since 0.28 only.
MISUSE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
INTERRUPTED = 130
BUG = InternalError.exit_code
FOREIGN = ModelError.exit_code
NO_FILE = FileError.exit_code
# A disk or a device that takes no more; stdout has no name, unlike a file that we open.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_MEMORY = "the model needs more memory than there is"
_FOREIGN = "code of the model, or of a library, ended the program"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 no, 2 usage or a file, 4 no answer, 70 a bug."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end the program.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run(sys.argv[1:] if argv is None else list(argv))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            sys.stdout.flush()
        except OSError:
            # Python would complain once more at its end, and exit with a code of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are on stderr already."""
    traced = "--traceback" in argv
    try:
        code = app(list(argv), prog_name=PROGRAM, standalone_mode=False)
    except GroupfxError as error:
        return _fail(error, str(error), error.exit_code, traced)
    except MISUSE as error:
        return _fail(error, _usage(error), error.exit_code, traced)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except MemoryError as error:
        return _fail(error, f"{_MEMORY} ({kind_and_line(error)})", FOREIGN, traced)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            return _fail(error, f"the output cannot be written: {error.strerror}", NO_FILE, traced)
        return _fail(error, kind_and_line(error), BUG, traced)
    except BaseException as error:
        # Nothing of ours ends the program from inside: the model's code did, or a library.
        return _fail(error, f"{_FOREIGN} ({kind_and_line(error)})", FOREIGN, traced)
    if code == INTERRUPTED:
        _say("interrupted")
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _fail(error, f"the output cannot be written: {error.strerror}", NO_FILE, traced)
    return code if isinstance(code, int) else 0


def _fail(error: BaseException, message: str, code: int, traced: bool) -> int:
    if traced:
        traceback.print_exception(error)
    _say(f"error: {message}", style=True)
    if code == BUG:
        again = "" if traced else ", with what --traceback prints"
        _say(f"this is a bug of groupfx, not of your model or file: please report it{again}")
    return code


def _say(message: str, *, style: bool = False) -> None:
    # Imported late: --help and --version do without.
    from .text.table import printable

    start = f"{PROGRAM}:"
    text = f"{start} {printable(message)}"
    if sys.stderr.isatty():
        text = "\n".join(_wrapped(line) for line in text.split("\n"))
        if style and not os.environ.get("NO_COLOR"):
            text = text.replace(start, typer.style(start, fg="red", bold=True), 1)
    print(text, file=sys.stderr)


def _wrapped(line: str) -> str:
    width = shutil.get_terminal_size().columns - 1
    return textwrap.fill(
        line,
        max(width, 20),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _usage(error: Any) -> str:
    """The message of a misuse, what was probably meant, and where help is."""
    message = error.format_message().strip().replace("Value error, ", "")
    near: Sequence[str] | None = getattr(error, "possibilities", None)
    if near:
        message = f"{getattr(error, 'message', message)}. Did you mean {' or '.join(near)}?"
    context = getattr(error, "ctx", None)
    path = PROGRAM if context is None else context.command_path
    return f"{message}{_missing_command(message)}\nTry '{path} --help'."


def _missing_command(message: str) -> str:
    """A hint where a file stands in the place of the command."""
    _, _, rest = message.partition("No such command '")
    word = rest.partition("'")[0]
    if not word or get_close_matches(word, COMMANDS) or not Path(word).is_file():
        return ""
    return f" Did you mean '{PROGRAM} inspect {word}' or '{PROGRAM} rewrite {word}'?"
