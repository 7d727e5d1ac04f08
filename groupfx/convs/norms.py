"""Which BatchNorm belongs to a convolution in an fx graph."""

from torch import fx, nn

from .spec import BATCHNORMS


def is_batchnorm(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` calls a plain BatchNorm module on one value."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    return type(root.get_submodule(str(node.target))) in BATCHNORMS


def norm_behind(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The BatchNorm that takes the value of `node`, which nothing else does; None without one."""
    users = list(node.users)
    return users[0] if len(users) == 1 and is_batchnorm(users[0], root) else None
