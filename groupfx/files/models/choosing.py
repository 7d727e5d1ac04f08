"""Which object of a file is the model: the module itself, one in a dict, or a state_dict."""

from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import FileError, UsageError
from ..names import first_few

# Under these names, people keep the weights of a model next to other things, best name first.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "module", "weights", "params")
_SHOWN = 12


def choose(found: object, key: str | None, source: str) -> nn.Module | Mapping[str, Tensor]:
    """The module or the state_dict in what a file holds.

    Raises `UsageError` for a `key` that is not there, and `FileError`, with the keys that are,
    where there is no model or more than one.
    """
    if key is not None:
        found = _at(found, key, source)
    if isinstance(found, nn.Module):
        return found
    state = _state_dict(found)
    if state is not None:
        return state
    if not isinstance(found, Mapping):
        raise FileError(
            f"{source} holds a {type(found).__name__}, not a model: save the module or its "
            "state_dict"
        )
    return _inside(found, source)


def _inside(found: Mapping[object, object], source: str) -> nn.Module | Mapping[str, Tensor]:
    modules = {key: value for key, value in found.items() if isinstance(value, nn.Module)}
    if len(modules) == 1:
        return next(iter(modules.values()))
    if len(modules) > 1:
        raise FileError(f"{source} holds several models: choose one with --key: {_keys(modules)}")
    states = {key: state for key, value in found.items() if (state := _state_dict(value))}
    for name in _STATE_KEYS:
        if name in states:
            return states[name]
    if len(states) == 1:
        return next(iter(states.values()))
    if states:
        raise FileError(
            f"{source} holds several sets of weights: choose one with --key: {_keys(states)}"
        )
    raise FileError(f"{source} holds no model; its keys are {_keys(found) or 'none'}")


def _state_dict(value: object) -> Mapping[str, Tensor] | None:
    """`value` if it is a table of names and tensors and nothing else, and not empty."""
    if not isinstance(value, Mapping) or not value:
        return None
    named = all(isinstance(key, str) for key in value)
    return value if named and all(isinstance(item, Tensor) for item in value.values()) else None


def _at(found: object, key: str, source: str) -> object:
    if not isinstance(found, Mapping):
        raise UsageError(
            f"--key {key}: {source} holds a {type(found).__name__}, not a dict: leave --key out"
        )
    if key not in found:
        raise UsageError(f"--key {key}: {source} has no such key; it has {_keys(found)}")
    return found[key]


def _keys(found: Mapping[object, object]) -> str:
    return first_few(list(found), _SHOWN)
