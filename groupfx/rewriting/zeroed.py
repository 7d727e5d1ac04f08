"""Sites whose rewrite set weights to 0: what they are checked against, and what that changed.

A threshold makes a rewrite inexact on purpose, and a check must not learn to look away for it. So
the original is copied, the same entries are set to 0 in the copy, and the rewritten model must
compute what the copy does, within the bounds that hold for every form. How far the copy is from the
original is measured apart, and said.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..running.copies import copied
from ..running.inputs import ExampleInputs
from ..running.unchanged import evaluate, unchanged
from ..tracing.graphs import copied_graph
from ..tracing.program import Fragment, Program
from .report import RewrittenSite

Reference = tuple[Program, tuple[RewrittenSite, ...], tuple[str, ...]]


def checked_against(program: Program, sites: Sequence[RewrittenSite]) -> Reference:
    """What `sites` are to be compared with: the program and the sites, and notes for the report.

    The given ones, without a note, where no site set a weight to 0; else ones whose original holds
    the same zeros. Raises `ModelError` where the original cannot be copied.
    """
    zeroed = {key: left_out for site in sites for key, left_out in site.zeroed.items()}
    if not zeroed:
        return program, tuple(sites), ()
    model = copied(program.model, share=False)
    _set_to_zero(dict(model.named_parameters(remove_duplicate=False)), zeroed)
    twins = {id(fragment): _twin(fragment, zeroed) for fragment in program.fragments}
    other = copy.copy(program)
    other.model = model
    other.fragments = list(twins.values())
    theirs = tuple(
        replace(site, fragment=twins.get(id(site.fragment), site.fragment)) for site in sites
    )
    return other, theirs, (_note(program, model, zeroed),)


def _twin(fragment: Fragment, zeroed: Mapping[str, Tensor]) -> Fragment:
    """The fragment with a reference of its own, which holds the zeros."""
    twin = copy.copy(fragment)
    twin.reference = copied_graph(fragment.reference)
    # The nodes of the copy have the names of the old ones, which is all that the twin goes by.
    assert isinstance(twin.reference, fx.GraphModule)
    names = twin.reference.named_parameters(remove_duplicate=False)
    _set_to_zero({fragment.original_key(key): tensor for key, tensor in names}, zeroed)
    return twin


def _set_to_zero(tensors: Mapping[str, Tensor], zeroed: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, left_out in zeroed.items():
            if key in tensors:
                tensors[key][left_out.to(tensors[key].device)] = 0


def _note(program: Program, model: nn.Module, zeroed: Mapping[str, Tensor]) -> str:
    assert program.inputs is not None
    before, after = (_outputs(each, program.inputs) for each in (program.model, model))
    error = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    value = torch.cat([b.flatten() for b in before])
    return (
        f"{len(zeroed)} weights were changed: some entries are 0 now, and every check is against "
        "the original with those zeros. That alone changes the outputs by at most "
        f"{_share(error.abs().max(), value.abs().max())} of their largest value "
        f"(root mean square: {_share(error.norm(), value.norm())}), on the example input in eval "
        "mode"
    )


def _outputs(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    with unchanged(model), torch.no_grad():
        evaluate(model)
        found = tree_leaves(inputs.map(torch.clone).call(model))
    return [
        leaf.detach().cpu().double()
        for leaf in found
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _share(part: Tensor, whole: Tensor) -> str:
    return f"{float(part / whole):.3g}" if float(whole) else "an unknown share"
