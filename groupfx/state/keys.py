"""What a tensor is called in a state_dict, where hooks give it another name than its path.

Wrappers of modules take their own name out of the keys, so that checkpoints are those of what they
wrap: `0._checkpoint_wrapped_module.weight` is stored as `0.weight`.
"""

from collections import defaultdict

from torch import nn


def state_keys(model: nn.Module) -> dict[str, str]:
    """The key of each stored tensor of `model`, by its path in the tree of modules.

    What is stored and is no tensor of the model, such as extra state, has its key for a path.
    """
    try:
        held = model.state_dict(keep_vars=True)
    except TypeError:  # a state_dict() of the user's own, without options
        return {key: key for key in model.state_dict()}
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    free: dict[int, list[str]] = defaultdict(list)
    for path, tensor in tensors.items():
        if path not in held:
            free[id(tensor)].append(path)
    return {
        free[id(value)].pop(0) if key not in tensors and free.get(id(value)) else key: key
        for key, value in held.items()
    }


def parameters_by_key(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` under their keys in its state_dict, or else their paths."""
    keys = state_keys(model)
    named = model.named_parameters(remove_duplicate=False)
    return {keys.get(path, path): parameter for path, parameter in named}
