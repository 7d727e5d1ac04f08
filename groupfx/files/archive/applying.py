"""Put the modules of an archive into a model that was built anew."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from ...convs.swapped_calls import SwappedCalls
from ...errors import FileError
from ...nn.swapped import SwappedConv, replace_everywhere
from ...running.copies import copied
from ..names import first_few
from .content import Archive, Calls, copy_graphs

_SHOWN = 5


def apply(archive: Archive, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """`model` with the archive's fragments at their paths and with the archive's weights.

    `model` is one of the same architecture, with any weights; a copy of it is changed, or, with
    `inplace`, the model itself. Weights keep the dtype and memory format that they have in the
    file, and what was tied there is tied. A fragment takes the train mode of what it replaces.
    Raises `FileError` where the model is of another architecture.
    """
    if archive.way != "modules" or archive.state is None:
        raise FileError(f"a file of way {archive.way!r} holds its whole model: nothing to apply")
    changed = model if inplace else copied(model, share=False)
    for path, fragment in copy_graphs(archive.fragments).items():
        _replace(changed, path, fragment)
    for calls in archive.calls:
        _take_calls(changed, calls)
    _tie(changed, archive)
    load_state(changed, archive.state, "the file")
    return changed


def _replace(model: nn.Module, path: str, fragment: fx.GraphModule) -> None:
    try:
        replaced = model.get_submodule(path)
    except AttributeError as error:
        raise FileError(_missing(path, model)) from error
    fragment.train(replaced.training)
    replace_everywhere(model, replaced, SwappedConv.of(fragment, replaced))


def _take_calls(model: nn.Module, calls: Calls) -> None:
    try:
        module = model.get_submodule(calls.path)
    except AttributeError as error:
        raise FileError(_missing(calls.path, model)) from error
    SwappedCalls.of(module).graphs[calls.spec] = calls.graph


def _missing(path: str, model: nn.Module) -> str:
    return (
        f"the file replaces the module {path}, which {type(model).__name__} does not have: "
        "build the model with the same --arch and arguments as when the file was written"
    )


def _tie(model: nn.Module, archive: Archive) -> None:
    """Make one Parameter of those that shared their memory when the file was written.

    Ties inside the model itself come with its constructor, and ties between fragments with the
    file; this is about a fragment that shares a weight with the rest of the model.
    """
    owners: dict[tuple[object, ...], nn.Parameter] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for key, parameter in named.items():
        tensor = (archive.state or {}).get(key)
        if tensor is None or tensor.is_meta or tensor.numel() == 0:
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        owner = owners.setdefault(place, parameter)
        if owner is not parameter and owner.shape == parameter.shape:
            path, _, name = key.rpartition(".")
            model.get_submodule(path)._parameters[name] = owner


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, exact: bool = True
) -> None:
    """Load `state`, which must have the keys of `model`, no more and no less.

    With `exact`, dtypes and memory formats become those of `state`; else they stay the model's, as
    with `load_state_dict`. Raises `FileError` with the first few keys that are missing, unexpected
    or of another shape.
    """
    _compare(model, state, source)
    if exact:
        _adopt_formats(model, state)
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise FileError(f"the weights of {source} do not fit: {error}") from error


def _adopt_formats(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    tensors.update(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for key, value in state.items():
            tensor = tensors.get(key)
            if tensor is not None and _differs(tensor, value):
                tensor.data = torch.empty_like(value, device=tensor.device)


def _differs(tensor: Tensor, value: Tensor) -> bool:
    return tensor.dtype != value.dtype or tensor.stride() != value.stride()


def _compare(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    expected = model.state_dict(keep_vars=True)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"
        for key in state
        if isinstance(expected.get(key), Tensor) and expected[key].shape != state[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {first_few(keys, _SHOWN)}"
        for keys, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (wrong, "of another shape"),
        )
        if keys
    ]
    if problems:
        raise FileError(
            f"the weights of {source} do not fit {type(model).__name__} ({'; '.join(problems)}): "
            "build the model that they were saved from (--arch and its arguments)"
        )
