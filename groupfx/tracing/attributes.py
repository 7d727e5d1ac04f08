"""The attributes of a model as they were before its forward ran on what is no tensor."""

from collections.abc import Collection

from torch import nn

from ..convs.names import joined


class Attributes:
    """The attributes of every module of a model, to be put back after `forward` ran on proxies."""

    def __init__(self, model: nn.Module) -> None:
        self._dicts = [
            (path, held, dict(held))
            for path, module in model.named_modules()
            for held in (module.__dict__, module._parameters, module._buffers, module._modules)
        ]

    def restore(self, except_for: Collection[str] = ()) -> str | None:
        """Undo every assignment; the first one found, by name, if there was any."""
        changed = None
        for path, held, before in self._dicts:
            names = [n for n in held.keys() | before.keys() if held.get(n) is not before.get(n)]
            if not names:
                continue
            own = [name for name in names if name not in except_for]
            if own and changed is None:
                changed = joined(path, own[0])
            held.clear()
            held.update(before)
        return changed
