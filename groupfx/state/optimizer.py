"""An optimiser carried over to parameters that are elements of other parameters, and back.

Cutting is exact only where an optimiser updates each element from that element, its gradient and
its state alone. The classes of torch that do are listed; the others are refused, because cut state
would load, run, and train another model.

Where a mask has hidden elements of a parameter, their state has no place in the parts: it is left
behind on the way there, and is 0 on the way back. State of padding starts at 0.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from ..errors import RewriteError, UsageError
from . import Entry, Picked, Rows, coverage

_ELEMENTWISE: frozenset[type[optim.Optimizer]] = frozenset(
    {
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.NAdam,
        optim.RAdam,
        optim.Adamax,
        optim.RMSprop,
        optim.Adagrad,
        optim.Adadelta,
        optim.ASGD,
        optim.Rprop,
    }
)
_MIXES = {
    "Adafactor": "keeps second moments of whole rows and columns, and scales a step by its tensor",
    "LBFGS": "keeps one history of all parameters joined to one vector",
    "Muon": "orthogonalises the update of a tensor as a whole",
    "SparseAdam": "takes sparse gradients only, which a convolution never has",
}
# What a parameter group says of its own parameters, and not of how to train them.
_OF_PARAMETERS = ("params", "param_names")

State = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """The parameter `part` is what `source` says of `whole`, which is called `source.key`."""

    whole: nn.Parameter
    part: nn.Parameter
    source: Entry

    @property
    def name(self) -> str:
        """What the whole is called in messages."""
        return self.source.key

    @property
    def start(self) -> int:
        """The first row of consecutive ones."""
        return self.source.start if isinstance(self.source, Rows) else 0


def split_optimizer(
    optimizer: optim.Optimizer,
    pieces: Iterable[Piece],
    *,
    dropped: Iterable[nn.Parameter] = (),
    elementwise: bool = False,
) -> optim.Optimizer:
    """An optimiser over the parts that goes on where `optimizer`, over the wholes, is.

    `dropped` are parameters that have no parts and are left out. `elementwise=True` vouches for a
    class that is not known here. Raises RewriteError for optimisers and state that cannot be cut,
    UsageError for a parameter that no piece is of.
    """
    _require_elementwise(optimizer, elementwise)
    gone = {id(parameter) for parameter in dropped}
    parts = _by_whole(pieces)
    groups: list[list[nn.Parameter]] = []
    states: dict[nn.Parameter, State] = {}
    for number, group in enumerate(optimizer.param_groups):
        held = [parameter for parameter in group["params"] if id(parameter) not in gone]
        _require_known(held, parts, number, "the original model")
        found = [piece for parameter in held for piece in parts[id(parameter)]]
        groups.append([piece.part for piece in found])
        states.update((piece.part, _cut(optimizer, piece)) for piece in found)
    return _rebuilt(optimizer, groups, states)


def join_optimizer(
    optimizer: optim.Optimizer, pieces: Iterable[Piece], *, elementwise: bool = False
) -> optim.Optimizer:
    """The inverse of `split_optimizer`: an optimiser over the wholes out of one over the parts.

    Raises what that does, and RewriteError if the parts of one parameter cannot be joined: they
    are in several parameter groups, some of them in none, or their scalars differ.
    """
    _require_elementwise(optimizer, elementwise)
    parts = _by_whole(pieces)
    wholes = {id(piece.part): piece.whole for found in parts.values() for piece in found}
    group_of = {
        id(parameter): number
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    groups: list[list[nn.Parameter]] = []
    states: dict[nn.Parameter, State] = {}
    for number, group in enumerate(optimizer.param_groups):
        _require_known(group["params"], wholes, number, "the rewritten model")
        found = list(dict.fromkeys(wholes[id(parameter)] for parameter in group["params"]))
        groups.append(found)
        for whole in found:
            _require_joinable(parts[id(whole)], group_of)
            states[whole] = _joined(optimizer, parts[id(whole)])
    return _rebuilt(optimizer, groups, states)


def _require_elementwise(optimizer: optim.Optimizer, vouched: bool) -> None:
    kind = type(optimizer)
    remedy = "start a new one over the parameters of the other model, or rewrite before training"
    if kind.__name__ in _MIXES:
        raise RewriteError(
            f"{kind.__name__} cannot be carried over: it {_MIXES[kind.__name__]}; {remedy}"
        )
    if kind not in _ELEMENTWISE and not vouched:
        known = ", ".join(sorted(each.__name__ for each in _ELEMENTWISE))
        raise RewriteError(
            f"{kind.__module__}.{kind.__qualname__} cannot be carried over: it is not one of "
            f"{known}, which update each element on its own; if it does so too, say "
            f"elementwise=True, else {remedy}"
        )
    loose = [key for key in optimizer.state if not isinstance(key, Tensor)]
    if loose:
        raise RewriteError(
            f"{kind.__name__} cannot be carried over: its state {loose[0]!r} belongs to no "
            f"parameter; {remedy}"
        )


def _by_whole(pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
    """The parts of each whole in the order of their rows, by the id of the whole."""
    parts: dict[int, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if not _fits(piece):
            raise UsageError(
                f"'{piece.name}' of the model given is {list(piece.whole.shape)}, which does not "
                f"fit a part of {list(piece.part.shape)}; give the model that was rewritten"
            )
        parts.setdefault(id(piece.whole), []).append(piece)
    for found in parts.values():
        _require_unscaled(found)
        _require_apart(found)
    return parts


def _fits(piece: Piece) -> bool:
    whole, source = piece.whole, piece.source
    if isinstance(source, Rows):
        return source.of(whole).shape == piece.part.shape
    axes = len(source.size)
    return tuple(whole.shape[:axes]) == source.size and piece.part.shape == torch.Size(
        (*source.shape, *whole.shape[axes:])
    )


def _require_unscaled(parts: Sequence[Piece]) -> None:
    for piece in parts:
        if isinstance(piece.source, Picked) and piece.source.is_scaled:
            raise RewriteError(
                f"the rewritten model holds elements of '{piece.name}' times a factor, as channels "
                "in several groups have it: their gradients and their steps are scaled, and state "
                "carried over would train another model; start a new optimiser"
            )


def _require_apart(parts: Sequence[Piece]) -> None:
    if bool((_coverage(parts) > 1).any()):
        raise RewriteError(
            f"'{parts[0].name}' of the original is in several parameters of the rewritten model "
            "that are not tied, or several times in one: an optimiser would train them apart; tie "
            "them first"
        )


def _coverage(parts: Sequence[Piece]) -> Tensor:
    return coverage([piece.source for piece in parts], parts[0].whole.shape)


def _require_known(
    parameters: Sequence[nn.Parameter], known: Collection[int], group: int, model: str
) -> None:
    foreign = [list(parameter.shape) for parameter in parameters if id(parameter) not in known]
    if foreign:
        raise UsageError(
            f"{len(foreign)} of {len(parameters)} parameters in group {group} of the optimiser, "
            f"the first of shape {foreign[0]}, are not those of {model}; give the model that the "
            "optimiser was made for, and keep parameters of other modules in an optimiser of "
            "their own"
        )


def _require_joinable(parts: Sequence[Piece], group_of: Mapping[int, int]) -> None:
    first = parts[0]
    masked = any(isinstance(piece.source, Picked) for piece in parts)
    held = _coverage(parts) > 0
    if not masked and not bool(held.all()):
        raise RewriteError(
            f"'{first.name}' of the original has {len(held)} rows, and the rewritten model "
            f"holds {int(held.sum())} of them; start a new optimiser over the original's parameters"
        )
    numbers = [group_of.get(id(piece.part)) for piece in parts]
    if len(set(numbers)) > 1:
        raise RewriteError(
            f"the {len(parts)} parts of '{first.name}' are in different parameter groups of the "
            f"optimiser ({numbers}), and the original has one parameter for them all; put them "
            "into one group"
        )


def _cut(optimizer: optim.Optimizer, piece: Piece) -> State:
    """The state of a part, in tensors of its own."""
    state: State = {}
    for key, value in optimizer.state.get(piece.whole, {}).items():
        if _is_scalar(optimizer, piece.name, piece.whole, key, value):
            state[key] = copy.deepcopy(value)
        else:
            state[key] = piece.source.of(value, fill=0).to(piece.part.device, copy=True)
    return state


def _joined(optimizer: optim.Optimizer, parts: Sequence[Piece]) -> State:
    """The state of a whole, out of that of its parts."""
    first = parts[0]
    states = [optimizer.state.get(piece.part, {}) for piece in parts]
    if any(state.keys() != states[0].keys() for state in states):
        raise RewriteError(
            f"the parts of '{first.name}' hold different state: "
            f"{', '.join(str(sorted(state)) for state in states)}; where only some of them were "
            "trained, the original's one parameter cannot say so"
        )
    joined: State = {}
    for key in states[0]:
        values = [state[key] for state in states]
        scalars = [
            _is_scalar(optimizer, first.name, piece.part, key, state[key])
            for piece, state in zip(parts, states, strict=True)
        ]
        if all(scalars):
            joined[key] = copy.deepcopy(_agreed(first.name, key, values))
        else:
            whole = values[0].new_zeros(first.whole.shape)
            for piece, value in zip(parts, values, strict=True):
                piece.source.put_back(value, whole)
            joined[key] = whole.to(first.whole.device)
    return joined


def _is_scalar(
    optimizer: optim.Optimizer, name: str, parameter: nn.Parameter, key: str, value: Any
) -> bool:
    """True for a number (or None), False for a tensor of the parameter's shape; else refused."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return False
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, Tensor) and value.dim() == 0:
        return True
    what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise RewriteError(
        f"{type(optimizer).__name__} cannot be carried over: its state '{key}' of '{name}' is "
        f"{what}, neither a scalar nor of the parameter's shape {list(parameter.shape)}; start a "
        "new one over the parameters of the other model"
    )


def _agreed(name: str, key: str, values: Sequence[Any]) -> Any:
    if any(value != values[0] for value in values):
        plain = [value.item() if isinstance(value, Tensor) else value for value in values]
        raise RewriteError(
            f"'{key}' differs between the parts of '{name}' ({plain}), and the original has one "
            "value; train all parts the same number of steps"
        )
    return values[0]


def _rebuilt(
    optimizer: optim.Optimizer,
    groups: Sequence[list[nn.Parameter]],
    states: Mapping[nn.Parameter, State],
) -> optim.Optimizer:
    """An optimiser of the same class and options over other parameters, in the given state."""
    kind = type(optimizer)
    # `defaults` may hold what the class sets itself, such as AdamW's decoupled_weight_decay.
    accepted = inspect.signature(kind).parameters
    options = {
        key: copy.deepcopy(value) for key, value in optimizer.defaults.items() if key in accepted
    }
    try:
        rebuilt = kind([{"params": parameters} for parameters in groups], **options)
    except (TypeError, ValueError) as error:
        raise RewriteError(
            f"{kind.__name__} could not be built over the other model's parameters: {error}; "
            "start a new one by hand"
        ) from error
    for fresh, group in zip(rebuilt.param_groups, optimizer.param_groups, strict=True):
        kept = {key: value for key, value in group.items() if key not in _OF_PARAMETERS}
        fresh.update(copy.deepcopy(kept))
    rebuilt.state.clear()
    rebuilt.state.update({parameter: state for parameter, state in states.items() if state})
    return rebuilt
