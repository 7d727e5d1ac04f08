"""Options of ONNX Runtime's sessions as a user sets them: attributes and configuration entries.

The runtime takes any entry and ignores those that it does not know, so that a slip of the pen would
be measured without it: names and values are checked here. Attributes are those that
`onnxruntime.SessionOptions` has; entries are those of `onnxruntime_session_options_config_keys.h`
that bear on what a CPU computes, and how fast. `free_dimension.NAME` is the size that a session is
told of a dimension that the file leaves open.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from ...errors import UsageError
from ..processor import require_threads

Session = Mapping[str, str]
"""Options by name, each in the one spelling that is kept in plans and caches."""

_Read = Callable[[str], str | None]
"""The one spelling of a value; None for what is none."""

# What the tuning says itself, or what says nothing of speed.
_THREADS = "intra_op_num_threads"
_OURS = frozenset(
    {
        "enable_profiling", "log_severity_level", "log_verbosity_level", "logid",
        "optimized_model_filepath", "profile_file_prefix", "use_per_session_threads", _THREADS,
    }
)  # fmt: skip
_FREE = "free_dimension."
_AFFINITIES = "session.intra_op_thread_affinities"
_PROCESSORS = re.compile(r"\d{1,5}([,-]\d{1,5})*")
_MOST_CHARACTERS = 1024
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def session_settings(given: object, threads: int) -> Session:
    """The options that are `given`: None, a table by names, texts `NAME=VALUE`, or a SessionOptions
    object, of which those count that are not as by default.

    Raises UsageError for a name that does not exist, and for a value that it does not take.
    """
    if given is None:
        return {}
    pairs: Iterable[tuple[str, object]]
    if isinstance(given, ort.SessionOptions):
        pairs = _of_object(given, threads)
    else:
        pairs = given.items() if isinstance(given, Mapping) else _pairs(given)
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"session: {name} is given twice")
        found[name] = _read(name, value)
    _require_pinned(found.get(_AFFINITIES), threads)
    return dict(sorted(found.items()))


def _require_pinned(affinities: str | None, threads: int) -> None:
    """Raise UsageError unless each thread but the caller's own has processors that there are.

    With one thread the runtime does not look at it.
    """
    if affinities is None:
        return
    told = affinities.split(";")
    cores = os.cpu_count() or 1
    good = all(_PROCESSORS.fullmatch(each) for each in told)
    if not good or not all(1 <= int(n) <= cores for n in re.findall(r"\d+", affinities)):
        raise UsageError(
            f"session: {_AFFINITIES}={affinities!r}: give processors from 1 to {cores}, ';' "
            "between those of threads"
        )
    if len(told) != threads - 1:
        raise UsageError(
            f"session: {_AFFINITIES} has {len(told)}, and {threads - 1} are pinned where "
            f"threads={threads}, as the caller's own is not"
        )


def set_session(options: ort.SessionOptions, session: Session) -> None:
    """Set `options` as `session` says."""
    for name, text in session.items():
        if name in _ENTRIES:
            options.add_session_config_entry(name, text)
        elif name.startswith(_FREE):
            options.add_free_dimension_override_by_name(name.removeprefix(_FREE), int(text))
        else:
            setattr(options, name, _attribute_value(getattr(options, name), text))


def require_dimensions(
    session: Session, model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Raise UsageError where a size is told that `model` does not leave open, or `feeds` have not.

    The runtime says nothing of the first.
    """
    told = {name.removeprefix(_FREE): n for name, n in session.items() if name.startswith(_FREE)}
    sizes = {
        str(size.value): feeds[value.name].shape[place]
        for value in model.graph.inputs
        if value.name is not None and value.name in feeds and value.shape is not None
        for place, size in enumerate(value.shape)
        if not isinstance(size, int)
    }
    for name, number in told.items():
        if name not in sizes:
            known = ", ".join(size for size in sizes if size != "None") or "none that has a name"
            raise UsageError(f"session: {_FREE}{name}: the file leaves open {known}")
        if sizes[name] != int(number):
            raise UsageError(
                f"session: {_FREE}{name}={number}: it is {sizes[name]} in the inputs that are run"
            )


def parallel(session: Session) -> bool:
    """Whether nodes run on other threads than the caller's, however few threads a node has."""
    return session.get("execution_mode") == "ORT_PARALLEL"


def session_text(session: Session) -> str:
    """Such as `execution_mode=ORT_PARALLEL, session.disable_prepacking=1`."""
    return ", ".join(f"{name}={text}" for name, text in session.items())


def _pairs(given: object) -> Iterator[tuple[str, str]]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Iterable):
        raise UsageError(
            f"session={given!r}: give a table of options by name, or a SessionOptions object"
        )
    for text in texts:
        name, equals, value = str(text).partition("=")
        if not equals or not name.strip():
            raise UsageError(f"session {text!r}: give NAME=VALUE, such as {_EXAMPLE}")
        yield name.strip(), value.strip()


_EXAMPLE = "execution_mode=ORT_PARALLEL or session.disable_prepacking=1"


def _of_object(given: ort.SessionOptions, threads: int) -> Iterator[tuple[str, object]]:
    own = given.intra_op_num_threads
    if own not in (0, threads):
        raise UsageError(f"session: its {_THREADS} is {own}: say threads={own}")
    usual = ort.SessionOptions()
    for name in _attributes():
        value = getattr(given, name)
        if value != getattr(usual, name):
            yield name, value
    for name in _ENTRIES:
        with contextlib.suppress(RuntimeError):  # it is not set
            yield name, given.get_session_config_entry(name)


def _attributes() -> tuple[str, ...]:
    """Those of a session's options that a user may set."""
    held = vars(ort.SessionOptions).items()
    return tuple(sorted(n for n, own in held if isinstance(own, property) and n not in _OURS))


def _read(name: object, value: object) -> str:
    """The one spelling of a value. Raises UsageError."""
    text = str(getattr(value, "name", value)).strip()
    if name == _THREADS:
        raise UsageError(f"session: {name} is what threads= and --threads say: threads={text}")
    if name in _OURS:
        raise UsageError(f"session: {name} is not taken: the tuning sets it itself")
    if name in _ENTRIES:
        read, takes = _ENTRIES[str(name)]
    elif str(name).startswith(_FREE) and name != _FREE:
        read, takes = _WHOLE
    elif name in _attributes():
        read, takes = _attribute_reader(str(name))
    else:
        raise UsageError(f"session: there is no option {name!r}{_meant(str(name))}")
    found = None if len(text) > _MOST_CHARACTERS else read(text)
    if found is None:
        raise UsageError(f"session: {name}={text[:80]!r} is no value of it: it takes {takes}")
    return found


def _meant(name: str) -> str:
    exist = [*_attributes(), *_ENTRIES]
    near = difflib.get_close_matches(name, exist, 2)
    if near:
        return f": {' or '.join(near)}?"
    return (
        f"; there are the attributes {', '.join(_attributes())}; the entries {', '.join(_ENTRIES)};"
        f" and {_FREE}NAME"
    )


def _attribute_reader(name: str) -> tuple[_Read, str]:
    usual = getattr(ort.SessionOptions(), name)
    if isinstance(usual, bool):
        return _flag_as(("false", "true")), "true or false"
    members = getattr(type(usual), "__members__", None)
    if members is not None:
        names = [str(member) for member in members]
        return lambda text: _member(names, text), ", ".join(names)

    def number(text: str) -> str | None:
        found = _number(text)
        if found not in (None, "0"):
            require_threads(int(found or 0), f"session: {name}")
        return found

    return number, "a whole number"


def _attribute_value(usual: Any, text: str) -> Any:
    if isinstance(usual, bool):
        return text == "true"
    return int(text) if isinstance(usual, int) else type(usual).__members__[text]


def _member(names: Iterable[str], text: str) -> str | None:
    """The member that `text` names, in any case, with `ORT_` before it or not."""
    wanted = text.upper()
    return next((name for name in names if wanted in (name, name.removeprefix("ORT_"))), None)


def _flag_as(spelled: tuple[str, str]) -> _Read:
    def read(text: str) -> str | None:
        known = text.lower()
        return spelled[1] if known in _YES else spelled[0] if known in _NO else None

    return read


def _number(text: str) -> str | None:
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _text(text: str) -> str | None:
    return text or None


def _optimisers(text: str) -> str | None:
    """Names that are somewhere in the runtime's library: it says nothing of those that are not."""
    library = Path(onnxruntime_pybind11_state.__file__).read_bytes()
    names = text.split(";")
    return text if all(name.isalnum() and name.encode() in library for name in names) else None


_FLAG = _flag_as(("0", "1")), "0 or 1"
_WHOLE = _number, "a whole number"
_ENTRIES: Mapping[str, tuple[_Read, str]] = {
    "mlas.nchwc_pointwise_conv_max_input_channel_batch": _WHOLE,
    "optimization.constant_folding_max_output_size_in_bytes": _WHOLE,
    "optimization.disable_specified_optimizers": (_optimisers, "optimisers' names, ';' between"),
    "optimization.enable_cast_chain_elimination": _FLAG,
    "optimization.enable_gelu_approximation": _FLAG,
    "session.disable_double_qdq_remover": _FLAG,
    "session.disable_prepacking": _FLAG,
    "session.disable_qdq_constant_folding": _FLAG,
    "session.disable_quant_qdq": _FLAG,
    "session.dynamic_block_base": _WHOLE,
    "session.enable_quant_qdq_cleanup": _FLAG,
    "session.graph_optimizations_loop_level": _WHOLE,
    "session.inter_op.allow_spinning": _FLAG,
    "session.inter_op.spin_backoff_max": _WHOLE,
    "session.intra_op.allow_spinning": _FLAG,
    "session.intra_op.spin_backoff_max": _WHOLE,
    _AFFINITIES: (_text, "processors of each thread, such as 1;2"),
    "session.prepack.enable_parallel": _FLAG,
    "session.qdqisint8allowed": _FLAG,
    "session.set_denormal_as_zero": _FLAG,
    "session.use_device_allocator_for_initializers": _FLAG,
    "session.use_env_allocators": _FLAG,
}
