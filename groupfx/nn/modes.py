"""What a graph asks for the mode of the model, which is else a constant of the graph."""

from typing import Any

from torch import nn


class TrainingMode(nn.Module):
    """Gives a number in train mode and another in eval mode: an operand, such as that of a dropout.

    It lies in the module that read its own `training`, so that a part of a model that is put into
    eval mode alone stays there.

    Args:
        evaluated: what it gives in eval mode, such as False for `training`.
        trained: what it gives in train mode, such as True.
    """

    def __init__(
        self, evaluated: float | bool | None = False, trained: float | bool | None = True
    ) -> None:
        super().__init__()
        self.evaluated = evaluated
        self.trained = trained

    def forward(self) -> float | bool | None:
        """The number of the mode that the module is in."""
        return self.trained if self.training else self.evaluated

    def extra_repr(self) -> str:
        return f"evaluated={self.evaluated}, trained={self.trained}"


class ByMode(nn.Module):
    """One module in train mode and another in eval mode, of the same operands.

    Args:
        evaluated: what runs in eval mode.
        trained: what runs in train mode.
    """

    def __init__(self, evaluated: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        self.evaluated = evaluated
        self.trained = trained

    def forward(self, *operands: Any) -> Any:
        """What the module of the mode gives for `operands`."""
        return (self.trained if self.training else self.evaluated)(*operands)
