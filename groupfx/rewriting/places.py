"""Modules and tensors of a model by their paths, and nodes of its graph: put in and taken out."""

from torch import fx, nn

from ..tracing.program import Fragment


def holding(holder: nn.Module, module: nn.Module) -> nn.Module:
    """`holder`, with the tensors and children of `module`."""
    holder._parameters.update(module._parameters)
    holder._buffers.update(module._buffers)
    holder._modules.update(module._modules)
    holder._non_persistent_buffers_set |= module._non_persistent_buffers_set
    holder.training = module.training
    return holder


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path`, where something is or was."""
    parent, _, name = path.rpartition(".")
    # Assigned, not added: a name keeps its place, and parameters their order.
    root.get_submodule(parent)._modules[name] = module


def found_at(root: nn.Module, key: str) -> object:
    """The tensor, or whatever lies, under `key`."""
    holder, name = holder_of(root, key)
    return getattr(holder, name)


def holder_of(root: nn.Module, key: str) -> tuple[nn.Module, str]:
    """The module that holds what is called `key`, and its name there."""
    path, _, name = key.rpartition(".")
    return root.get_submodule(path), name


def remove(root: nn.Module, key: str) -> None:
    """Take the tensor called `key` out of what holds it."""
    holder, name = holder_of(root, key)
    holder._parameters.pop(name, None)
    holder._buffers.pop(name, None)


def erase(fragment: Fragment, end: fx.Node, stop: fx.Node) -> None:
    """Erase `end` and what only it needed, back to `stop`."""
    pending = [end]
    while pending:
        node = pending.pop()
        if node.users or node is stop or node.op in ("placeholder", "output"):
            continue
        if node.op == "call_function" and node.is_impure():
            continue
        sources = node.all_input_nodes
        fragment.forget(node)
        fragment.working.graph.erase_node(node)
        pending += [source for source in sources if not source.users]
