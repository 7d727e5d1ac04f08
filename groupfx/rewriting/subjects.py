"""What a target is asked about in a torch model: convolutions, and operations on channels.

A convolution is judged by its numbers. Between convolutions stand operations that many toolchains
do not take: a channel shuffle (a reshape into more dimensions), a gather, a slice or a
concatenation of channels. Operations of one kind in the forward of one module count as one.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ..nn import ChannelGather, ChannelShuffle
from ..plan.site_plan import site_of
from ..targets import Subject, numbers_of
from ..targets.facts import OperationTopic
from ..tracing import Program
from ..tracing.graphs import run_graph
from ..tracing.places import operation_of, owner_of
from .channel_calls import name_of
from .driver import UnreadableSite, find_sites
from .learned_sites import learned_calls
from .site import Site
from .store import Store

_RESHAPES = frozenset({"reshape", "unflatten", "view", "_unsafe_view", "channel_shuffle"})
_GATHERS = frozenset({"index_select", "index"})
_SLICES = frozenset({"slice", "narrow", "split", "split_with_sizes", "chunk", "tensor_split"})
_CONCATS = frozenset({"cat", "concat", "concatenate"})
_SHUFFLES = (nn.ChannelShuffle, ChannelShuffle)
# Behind the convolution of a branch stand its norm and its activation.
_NEAR = 3
_LEARNED = "its weight is under a mask that each forward computes"


def subjects(program: Program) -> tuple[Subject, ...]:
    """All that is judged of a model that was opened, in the order of its graph."""
    return (*_convs(program), *_operations(program))


def _convs(program: Program) -> Iterator[Subject]:
    store = Store(program, {})
    for site in find_sites(program, store):
        if isinstance(site, UnreadableSite):
            yield Subject(site.name, site.name, "a convolution", unread=site.reason)
        else:
            yield _conv(site)
    for site in find_sites(program, store, learned_calls):
        reason = site.reason if isinstance(site, UnreadableSite) else _LEARNED
        yield Subject(site.name, site.name, "learned groups", unread=reason)


def _conv(site: Site) -> Subject:
    of = site.branch_of or site.name
    return Subject(site.name, of, site.spec.describe(), numbers=numbers_of(site.spec))


def _operations(program: Program) -> Iterator[Subject]:
    seen: set[Subject] = set()
    for fragment in program.fragments:
        root = fragment.working
        if not fragment.is_part and program.inputs is not None:
            # A pass may have been here since the shapes were noted.
            run_graph(root, root, program.inputs)
        for node in root.graph.nodes:
            site = _site_of(node)
            owner = owner_of(node) if site is None else site
            found = _operation(node, root, fragment.full_name(owner))
            if found is not None and found not in seen:
                seen.add(found)
                yield found


def _site_of(node: fx.Node) -> str | None:
    """The site that was split, where `node` is what that put in front of it or behind it."""
    for user in node.users:
        site = site_of(user.meta)
        if site is not None:
            return site
    maker: fx.Node | None = node
    for _ in range(_NEAR):
        maker = next(iter(maker.all_input_nodes), None) if maker is not None else None
        site = None if maker is None else site_of(maker.meta)
        if site is not None:
            return site
    return None


def _operation(node: fx.Node, root: fx.GraphModule, owner: str) -> Subject | None:
    """The operation of a node as a subject; None for one that nothing is asked about."""
    read = _read(node, root)
    if read is None:
        return None
    topic, parts = read
    text = operation_of(node, root)
    rank = max(len(_shape(node)), _rank_inside(node, root))
    name = f"{owner}: {text}" if owner else text
    return Subject(name, owner, text, operation=topic, rank=rank, parts=parts)


def _read(node: fx.Node, root: fx.GraphModule) -> tuple[OperationTopic, int] | None:
    """What a node does to channels, and how many values it joins."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if isinstance(module, _SHUFFLES):
            return "reshape", 0
        return ("gather", 0) if isinstance(module, ChannelGather) else None
    given = node.all_input_nodes
    if node.op not in ("call_function", "call_method") or not given or len(_shape(given[0])) < 3:
        return None
    name = name_of(node)
    if node.target is operator.getitem:
        return _index(node.args[1])
    if name == "channel_shuffle" or (
        name in _RESHAPES and len(_shape(node)) > len(_shape(given[0]))
    ):
        return "reshape", 0
    if name in _GATHERS and _dim(node, 1) in (1, None):
        return "gather", 0
    if name in _SLICES and _dim(node, 2 if name in _SPLITS else 1) == 1:
        return "slice", 0
    if name in _CONCATS and _dim(node, 1) == 1:
        return "concat", len(given)
    return None


_SPLITS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split"})


def _index(index: object) -> tuple[OperationTopic, int] | None:
    """What an index does to channels, the second of its parts."""
    if not isinstance(index, tuple) or len(index) < 2:
        return None
    channels: Any = index[1]
    if isinstance(channels, slice):
        return None if channels == slice(None) else ("slice", 0)
    return ("gather", 0) if isinstance(channels, (list, torch.Tensor, fx.Node)) else None


def _dim(node: fx.Node, place: int) -> int | None:
    """The dimension that a call names, counted from the front; None where it names none."""
    dim: Any = node.kwargs.get("dim", node.kwargs.get("axis"))
    if dim is None and place < len(node.args):
        dim = node.args[place]
    if not isinstance(dim, int):
        return None if dim is not None else 0
    return dim % max(len(_shape(node.all_input_nodes[0])), 1)


def _rank_inside(node: fx.Node, root: fx.GraphModule) -> int:
    """The dimensions that a shuffle has on the way."""
    shuffles = name_of(node) == "channel_shuffle"
    if node.op == "call_module":
        shuffles = isinstance(root.get_submodule(str(node.target)), _SHUFFLES)
    return len(_shape(node)) + 1 if shuffles else 0


def _shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta.get("shape")
    if found is None:
        value = node.meta.get("val")
        found = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(found)
