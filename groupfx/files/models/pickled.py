"""Models in pickles: what `torch.save` writes, read with and without trust.

A pickle may run any code when it is loaded. Without trust it is first looked through, and loaded
by torch's restricted unpickler only if everything in it is a tensor, a container, or a class of
`torch.nn` or `groupfx.nn`. What comes out is then built anew from plain data.
"""

import functools
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from ...errors import FileError, no_exit
from ..archive.content import rebuild_plain
from ..archive.module_classes import classes
from ..archive.tensors import NotPlain, numbers_of
from ..choosing import Choice, Look, choose
from ..container import PICKLE, check_container, check_size, is_zip, read_record
from ..inert import COMPUTED, REBUILD, PickleUse, scan
from ..names import Damaged, first_few
from ..pickles import opcodes, reason
from .factories import searched

_LOOK = Look(lambda found: isinstance(found, nn.Module), lambda found: isinstance(found, Tensor))
# Pickles that torch wrote before it used zip files: magic number, version, system, object, keys.
_LEGACY_PICKLES = 5
_SHOWN = 8

_CALLED = frozenset(
    {
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
        "torch.serialization._get_layout",
        REBUILD,
    }
)
# Named, but never called: types of storages, dtypes, and the class that a tensor is rebuilt to.
_NAMED = re.compile(
    r"torch\.[A-Za-z0-9]+Storage|torch\.storage\.(Untyped|Typed)Storage|torch\.Tensor"
    r"|torch\.nn\.parameter\.Parameter|torch\.(float|bfloat|int|uint|complex|bool|long|half)\w*"
)
# torch's own hooks that compute a weight, and how they are held; all are rebuilt from plain data.
_HOOKS: tuple[type, ...] = (
    WeightNorm,
    SpectralNorm,
    SpectralNormStateDictHook,
    SpectralNormLoadStateDictPreHook,
    _WrappedHook,
    prune.CustomFromMask,
    prune.Identity,
    prune.L1Unstructured,
    prune.LnStructured,
    prune.PruningContainer,
    prune.RandomStructured,
    prune.RandomUnstructured,
)
# What torch.nn keeps in a field as a function, by the name under which it is pickled.
_FUNCTIONS: Mapping[str, Any] = {
    "torch.nn.functional.relu": functional.relu,
    "torch.nn.functional.leaky_relu": functional.leaky_relu,
    "torch.nn.functional.silu": functional.silu,
    "torch.nn.functional.mish": functional.mish,
    "torch.nn.functional.elu": functional.elu,
    "torch._C._nn.gelu": functional.gelu,
}


def read_trusted(
    file: BinaryIO, source: str, key: str | None, python_path: Sequence[Path]
) -> Choice:
    """The model of a pickle whose author is trusted: this runs whatever code it names.

    `python_path` holds folders that are searched for its classes. Raises `FileError`.
    """
    with searched(python_path), warnings.catch_warnings(), no_exit(source, FileError):
        warnings.simplefilter("ignore")
        try:
            found = _load_trusted(file)
        except (ImportError, AttributeError) as error:
            raise FileError(
                f"{source} needs a class that is not found ({error}): name the folder of its "
                "Python file with --python-path, or save a state_dict and give --arch"
            ) from error
        except Exception as error:
            raise FileError(
                f"{source} cannot be loaded: {type(error).__name__}: {reason(error)}"
            ) from error
    chosen = _inside(choose(found, _LOOK, key=key, source=source))
    if isinstance(chosen.network, nn.Module):
        _require_restored(chosen.network, source)
    return chosen


def _require_restored(network: nn.Module, source: str) -> None:
    """Raise `FileError` for layers that torch pickles and does not restore, as torch.ao's are."""
    pending = [network]
    while pending:
        module = pending.pop()
        if not {"_parameters", "_buffers", "_modules"} <= vars(module).keys():
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise FileError(
                f"{source} holds a {kind}, which torch does not restore from a pickle. Quantised "
                "layers are exported where they are made, torch.onnx.export(model, inputs, "
                '"model.onnx", dynamo=False), and the file is rewritten: groupfx rewrite model.onnx'
            )
        pending += [child for child in module._modules.values() if child is not None]


def _inside(chosen: Choice) -> Choice:
    """The module that DataParallel spreads over GPUs, which is the network."""
    network = chosen.network
    while isinstance(network, nn.DataParallel):
        network = network.module
    return replace(chosen, network=network)


def _load_trusted(file: BinaryIO) -> object:
    if is_zip(file) or _is_legacy(file):
        return torch.load(file, map_location="cpu", weights_only=False)
    return pickle.load(file)


def read_untrusted(file: BinaryIO, source: str, key: str | None) -> Choice:
    """The model of a pickle that is checked first; nothing of its author's is run.

    Raises `FileError` with the classes that the pickle asks for and the ways out, or for a file
    that is damaged.
    """
    size = _look_through(file, source)
    allowed: list[Any] = [*classes().values(), *_HOOKS, nn.DataParallel]
    allowed.extend((function, name) for name, function in _FUNCTIONS.items())
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FileError(
                f"{source} is damaged, or torch.save did not write it: {reason(error)}"
            ) from error
    chosen = _inside(choose(found, _LOOK, key=key, source=source))
    try:
        return replace(chosen, network=_clean(chosen.network, size))
    except (NotPlain, Damaged) as error:
        raise FileError(f"{source} holds {error}. {_ways_out()}") from error
    except Exception as error:
        raise FileError(f"{source} is damaged: {reason(error)}") from error


def _look_through(file: BinaryIO, source: str) -> int:
    """Refuse a pickle that would do more than build tensors and modules; return the file's size."""
    try:
        if is_zip(file):
            size = check_container(file).size
            data = read_record(file, PICKLE)
            uses = [scan(data)]
        else:
            uses = _scan_stream(file, source)
            size = file.seek(0, 2)
            file.seek(0)
            data = file.read(2)
    except Damaged as error:
        raise FileError(f"{source} cannot be read: {error}") from error
    finally:
        file.seek(0)
    foreign = sorted(set().union(*(_foreign(use) for use in uses)))
    if foreign:
        raise FileError(
            f"{source} holds more than weights and torch.nn modules: it asks for "
            f"{first_few(foreign, _SHOWN)}. {_ways_out()}"
        )
    _require_protocol(data, source)
    return size


def _require_protocol(pickle_: bytes, source: str) -> None:
    """Refuse a protocol that torch reads from those whom it trusts only."""
    if pickle_[:1] == b"\x80" and pickle_[1:2] > b"\x03":
        raise FileError(
            f"{source} was saved with pickle_protocol={pickle_[1]}, and what torch reads without "
            "trust is protocol 2: save it again without that option, or, only for a file that you "
            "made yourself, give --trust-pickle"
        )


def _ways_out() -> str:
    return (
        "Loading that would run code that the file names. Ways out: save the state_dict and give "
        "--arch; or, only for a file that you made yourself, --trust-pickle, with --python-path "
        "DIR for its classes"
    )


def _scan_stream(file: BinaryIO, source: str) -> list[PickleUse]:
    if not _is_legacy(file):
        use = scan(file)
        foreign = first_few(sorted(use.globals), _SHOWN) or "no classes"
        raise FileError(
            f"{source} is a plain pickle that torch.save did not write; it asks for {foreign}. "
            f"{_ways_out()}"
        )
    return [scan(file) for _ in range(_LEGACY_PICKLES)]


def _is_legacy(file: BinaryIO) -> bool:
    try:
        # The protocol, from 4 on the length of a frame, and the number.
        arguments = [argument for _, argument in zip(range(3), opcodes(file), strict=False)]
    except Damaged:
        return False
    finally:
        file.seek(0)
    return any(argument == torch.serialization.MAGIC_NUMBER for _, argument in arguments)


def _foreign(use: PickleUse) -> set[str]:
    """What in a pickle is more than tensors and plain modules, in words."""
    known = {name for name in use.globals if name in _CALLED | _made() | _FUNCTIONS.keys()}
    known |= {name for name in use.globals if _NAMED.fullmatch(name)}
    found = use.globals - known
    # A class is made without its constructor, whose arguments may ask for any amount of memory.
    found |= {f"a call of {name}" for name in (use.called - _CALLED) & (known | {COMPUTED})}
    found |= {f"an instance of {name}" for name in (use.made - _made()) & (known | {COMPUTED})}
    if use.old_modules:
        found.add("modules in the format of torch before 1.6")
    return found


@functools.cache
def _made() -> frozenset[str]:
    """Names of the classes of which a pickle may make instances."""
    kinds = [*classes().values(), *_HOOKS, nn.DataParallel, OrderedDict]
    return frozenset(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)


def _clean(found: nn.Module | Mapping[str, Tensor], size: int) -> nn.Module | Mapping[str, Tensor]:
    if isinstance(found, nn.Module):
        module = rebuild_plain(found)
        check_size([*module.parameters(), *module.buffers()], size)
        return module
    state = {key: numbers_of(tensor, strict=True) for key, tensor in found.items()}
    check_size(list(state.values()), size)
    return state
