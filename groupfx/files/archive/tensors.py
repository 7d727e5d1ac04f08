"""The tensors of a file: each once, so that what was tied stays tied."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...running.copies import has_gradient_hooks
from ..names import Damaged

Entry = dict[str, object]


class NotPlain(ValueError):
    """A value that a file cannot hold as plain data. The message says what it is."""


@dataclass
class TensorWriter:
    """Collects tensors. The index of a tensor in `entries` stands for it everywhere else.

    Two uses of one `Parameter` get one index. Views of one storage stay views of one storage,
    because `torch.save` writes each storage once. With `strict`, a tensor whose elements lie on top
    of each other is refused instead of being spread out: a stranger's file may claim any size.
    """

    strict: bool = False
    entries: list[Entry] = field(default_factory=list)
    _seen: dict[int, tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    def add(self, tensor: Tensor) -> int:
        """Index of `tensor`. Raises `NotPlain` for one that is more than strided numbers."""
        seen = self._seen.get(id(tensor))
        if seen is not None:
            return seen[0]
        data = numbers_of(tensor, strict=self.strict)
        index = len(self.entries)
        # The tensor is kept as well, so that its id is not given to another one meanwhile.
        self._seen[id(tensor)] = (index, tensor)
        self.entries.append(
            {
                "data": data,
                "parameter": isinstance(tensor, nn.Parameter),
                "requires_grad": tensor.requires_grad,
            }
        )
        return index


def numbers_of(tensor: Tensor, *, strict: bool = False) -> Tensor:
    """The numbers of `tensor`, in its own memory unless some of them overlap.

    Raises `NotPlain` for a tensor that is more than strided numbers.
    """
    kind = type(tensor)
    if kind is not Tensor and kind is not nn.Parameter:
        raise NotPlain(f"a tensor of the class {kind.__module__}.{kind.__qualname__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise NotPlain("a tensor that is sparse, quantised or nested")
    if not tensor.is_leaf:
        raise NotPlain("a tensor that was computed from others and still remembers how")
    if has_gradient_hooks(tensor):
        raise NotPlain("a tensor with hooks on its gradient")
    data = tensor.detach()
    if not _claims_more_than_it_has(data):
        return data
    if strict:
        raise NotPlain(f"a tensor of shape {tuple(data.shape)}, more than the numbers given")
    return data.clone()


def read_tensors(entries: object) -> list[Tensor]:
    """The tensors of a file, in order. Raises `Damaged`."""
    if not isinstance(entries, list):
        raise Damaged("its list of tensors is missing")
    return [_read_tensor(entry) for entry in entries]


def _read_tensor(entry: object) -> Tensor:
    if not isinstance(entry, dict):
        raise Damaged("an entry of its list of tensors is no table")
    data = require_numbers(entry.get("data"))
    requires_grad = entry.get("requires_grad") is True
    if requires_grad and not (data.is_floating_point() or data.is_complex()):
        raise Damaged(f"a tensor of {data.dtype} cannot require a gradient")
    if entry.get("parameter") is True:
        return nn.Parameter(data, requires_grad=requires_grad)
    return data.requires_grad_(requires_grad)


def require_numbers(data: object) -> Tensor:
    """`data` if it is a tensor of plain numbers that all lie in its storage."""
    if type(data) is not Tensor or data.layout != torch.strided or data.is_quantized:
        raise Damaged("one of its tensors is not a plain tensor")
    if data.requires_grad or data.is_nested or data.__dict__:
        raise Damaged("one of its tensors carries more than numbers")
    if _claims_more_than_it_has(data):
        raise Damaged(f"a tensor of shape {tuple(data.shape)} is larger than the numbers given")
    return data


def _claims_more_than_it_has(data: Tensor) -> bool:
    """Whether elements lie on top of each other, as after `expand`."""
    if data.is_meta:
        return False
    return data.numel() * data.element_size() > data.untyped_storage().nbytes()
