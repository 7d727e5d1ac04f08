"""Traits of modules whose hooks give the tensors of a state_dict other names than their paths."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from tests.traits.trait import grouped, trait


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    # The statistics of a BatchNorm would be updated again in a backward.
    block = nn.Sequential(grouped(), nn.GroupNorm(3, 6), nn.ReLU())
    return nn.Sequential(wrap(block), nn.Conv2d(6, 4, 1))


def reentrant(module: nn.Module) -> nn.Module:
    return checkpoint_wrapper(module, CheckpointImpl.REENTRANT)


@trait("modules")
def wrapped_reentrant() -> nn.Module:
    return wrapped(reentrant)


@trait()
def wrapped_not_reentrant() -> nn.Module:
    return wrapped(checkpoint_wrapper)


@trait("modules")
def wrapped_conv_reentrant() -> nn.Module:
    return nn.Sequential(reentrant(grouped()), nn.ReLU())


@trait("modules", calls=2)
def wrapped_by_policy() -> nn.Module:
    model = nn.Sequential(grouped(), nn.Sequential(grouped(), nn.ReLU()))
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=reentrant,
        check_fn=lambda module: isinstance(module, nn.Conv2d),
    )
    return model


class Renames(nn.Module):
    """Stores what it holds under other names, as somebody's old checkpoints have it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_state_dict_post_hook(self.stored)
        self.register_load_state_dict_pre_hook(self.found)

    @staticmethod
    def stored(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}inner.")]:
            state[f"{prefix}old_{key.removeprefix(f'{prefix}inner.')}"] = state.pop(key)

    @staticmethod
    def found(_module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}old_")]:
            state[f"{prefix}inner.{key.removeprefix(f'{prefix}old_')}"] = state.pop(key)

    def forward(self, x: Tensor) -> Tensor:
        # Reads a number of the tensor, which a trace cannot.
        return self.inner(x) if float(x.sum()) > -1e9 else x


@trait("modules")
def renamed_by_hooks() -> nn.Module:
    return nn.Sequential(Renames(grouped()), nn.ReLU())


@trait("modules")
def renamed_block() -> nn.Module:
    return nn.Sequential(Renames(nn.Sequential(grouped(), nn.BatchNorm2d(6))), nn.Conv2d(6, 4, 1))
