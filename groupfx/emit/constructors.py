"""Leaf modules as constructor calls, each checked by making the call and comparing the result.

A module does not remember the arguments that it was made with. They are looked for (`recipes.py`),
and what comes out is only written once a module made with them has the fields, tensors and children
of the original. Arguments that make no difference are left out by the same test.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..convs.names import joined
from ..errors import RewriteError
from ..tracing.tracer import seeded
from .likeness import Fingerprint, Likeness, compare, fingerprint, holds_numbers
from .made import Made
from .recipes import make


@dataclass(frozen=True)
class Written:
    """How a leaf module is written: a call, and what is changed afterwards.

    `fields` are set; the parameters `buffers` become buffers. `numbers` are buffers, by their paths
    in the module, whose numbers are in no state_dict and do not come from the constructor.
    """

    made: Made
    fields: Mapping[str, Any]
    buffers: tuple[str, ...]
    numbers: Mapping[str, Tensor]


class Constructors:
    """Writes the constructor calls of one file; equal modules are looked at once."""

    def __init__(self) -> None:
        self._known: dict[Fingerprint, Written] = {}

    def written(self, module: nn.Module, path: str) -> Written:
        """How `module`, which lies at `path`, is written. Raises RewriteError if it cannot be."""
        key = fingerprint(module)
        if key not in self._known:
            try:
                self._known[key] = _checked(make(module), module)
            except RewriteError as error:
                raise RewriteError(
                    f"{path} ({type(module).__name__}) cannot be written as Python: {error}"
                ) from error
        return self._known[key]


def _checked(made: Made, module: nn.Module) -> Written:
    """`made` without what is not needed, once it is known to give a module like `module`."""
    likeness = _likeness(made, module)
    if likeness.difference is not None:
        raise RewriteError(likeness.difference)

    def is_as_good(candidate: Made) -> bool:
        try:
            return _likeness(candidate, module) == likeness
        except RewriteError:
            return False

    made = _simplified(made, is_as_good)
    return Written(made, likeness.fields, likeness.buffers, _other_numbers(made, module))


def _simplified(made: Made, is_as_good: Callable[[Made], bool]) -> Made:
    """`made` with fewer and shorter arguments, in the calls inside it too."""
    for name in list(made.kwargs):
        fewer = {key: value for key, value in made.kwargs.items() if key != name}
        without = replace(made, kwargs=fewer)
        made = without if is_as_good(without) else made
    for place in (*range(len(made.args)), *made.kwargs):
        made = _simpler_at(made, place, is_as_good)
    return made


def _simpler_at(made: Made, place: int | str, is_as_good: Callable[[Made], bool]) -> Made:
    """`made` with a simpler argument at a position or under a name."""

    def put(argument: Any) -> Made:
        if isinstance(place, str):
            return replace(made, kwargs={**made.kwargs, place: argument})
        return replace(made, args=(*made.args[:place], argument, *made.args[place + 1 :]))

    value = made.kwargs[place] if isinstance(place, str) else made.args[place]
    if isinstance(value, Made):
        return put(_simplified(value, lambda inner: is_as_good(put(inner))))
    shorter = _shortened(value)
    return put(shorter) if shorter is not value and is_as_good(put(shorter)) else made


def _shortened(value: Any) -> Any:
    """`3` for `(3, 3)`."""
    if isinstance(value, tuple) and value and all(item == value[0] for item in value):
        return value[0] if isinstance(value[0], int) else value
    return value


def _other_numbers(made: Made, module: nn.Module) -> dict[str, Tensor]:
    """Buffers outside of the state_dict whose numbers the constructor does not give."""
    if not any(inner._non_persistent_buffers_set for inner in module.modules()):
        return {}
    with _without_traces("cpu"):
        twin = made.build()
    found = {}
    for path, inner in module.named_modules():
        for name in sorted(inner._non_persistent_buffers_set):
            buffer, other = inner._buffers.get(name), twin.get_submodule(path)._buffers.get(name)
            if buffer is None or (other is not None and _same_numbers(buffer, other)):
                continue
            found[joined(path, name)] = buffer
    return found


def _same_numbers(buffer: Tensor, other: Tensor) -> bool:
    return buffer.shape == other.shape and torch.equal(buffer.cpu(), other.to(buffer.dtype))


def _likeness(made: Made, module: nn.Module) -> Likeness:
    # Numbers are compared where there are some that no state_dict brings.
    if any(map(holds_numbers, module.modules())):
        return compare(_twin(made, "cpu"), module)
    try:
        return compare(_twin(made, "meta"), module)
    except RewriteError:
        # Some constructors read numbers that they compute, which `meta` does not have.
        return compare(_twin(made, "cpu"), module)


def _twin(made: Made, device: str) -> nn.Module:
    try:
        with _without_traces(device):
            twin: nn.Module = made.build()
    except Exception as error:
        # A constructor, perhaps of the user, refuses what was found: that is the answer.
        raise RewriteError(
            f"making it anew fails ({type(error).__name__}: {error}); "
            "keep the constructor's arguments as attributes of the same names"
        ) from error
    return twin


@contextlib.contextmanager
def _without_traces(device: str) -> Iterator[None]:
    """Constructors run on `device`, say nothing, and leave the random state as it was."""
    with seeded(0), torch.device(device), warnings.catch_warnings():
        # What a constructor has to say was said when the model was made.
        warnings.simplefilter("ignore")
        yield
