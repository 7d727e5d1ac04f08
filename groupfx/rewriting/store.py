"""Where the tensors of the working model are, who uses them, and where rewrites move them.

One store serves one pass over one program. It knows every module that registers a tensor and
every graph node that reads it, so that a tensor is cut into rows only where nothing else needs it
whole; it cuts each tensor once, so that what was tied stays tied; and it keeps the map from the
rewritten model's state_dict to the original's.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ..convs.calls import ConvCall, Stored
from ..convs.names import joined
from ..convs.spec import BATCHNORMS, norm_channels, rows_of
from ..learned.groups import INPUT_SCORES, OUTPUT_SCORES
from ..nn import HookedWeight, hooked_names
from ..nn.flgc import BALANCED
from ..nn.marks import mark_orders
from ..plan.channel_order import ChannelOrders
from ..plan.channels import Slice
from ..running.copies import has_gradient_hooks
from ..running.overlaps import lying_on
from ..state import compose
from ..state.map import Entry, Fixed, Picked, Requirement, Rows, Zeros
from ..tracing.hooks import hooked, state_hooks
from ..tracing.program import Fragment, Program
from .leaves import parameter_like
from .places import found_at, holder_of, holding, put, remove
from .resizing import fit_fields
from .weights import MaskedLayer

Place = tuple[int, str]
_HOOKED = "hooked"
_COUNTER = "num_batches_tracked"


def _taken_over(module: nn.Module) -> HookedWeight | None:
    """What computes the one tensor of `module` that a legacy hook makes; None if there is none."""
    names = hooked_names(module)
    return HookedWeight.from_module(module, names[0]) if len(names) == 1 else None


class Store:
    """The tensors of one program's working side; see the module's text."""

    def __init__(self, program: Program, entries: dict[str, Entry | Requirement]) -> None:
        self.program = program
        self.entries = entries
        self.placed: set[object] = set()
        self.homes: dict[tuple[int, str], str] = {}
        self._cut: dict[tuple[int, int, int], torch.Tensor] = {}
        self._moved: dict[tuple[int, str], str] = {}
        self._tied: list[torch.Tensor] = []
        self._owned: dict[int, nn.Module] = {}
        # Kept, as what is known of them goes by their addresses.
        self._replaced: list[object] = []
        self._claimed: set[fx.Node] = set()
        self._paths: dict[int, list[str]] = defaultdict(list)
        self._registered: dict[int, set[Place]] = defaultdict(set)
        self._calls: dict[int, list[fx.Node]] = defaultdict(list)
        self._reads: dict[int, list[fx.Node]] = defaultdict(list)
        self._gradient_hooks: dict[int, str] = {}
        self._lies_on = lying_on(program.result)
        self.batchnorm_channels: set[int] = set()
        self._survey()

    def _survey(self) -> None:
        # A copy of a tensor does not have its hooks: the original says which there are.
        hooked_names = {
            name
            for name, tensor in self.program.model.named_parameters(remove_duplicate=False)
            if has_gradient_hooks(tensor)
        }
        for path, module in self.program.result.named_modules(remove_duplicate=False):
            self._paths[id(module)].append(path)
            if type(module) in BATCHNORMS:
                self.batchnorm_channels.add(norm_channels(module))
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None:
                    continue
                self._registered[id(tensor)].add((id(module), name))
                if joined(path, name) in hooked_names:
                    self._gradient_hooks[id(tensor)] = name
        for fragment in self.program.fragments:
            for node in fragment.working.graph.nodes:
                if node.op == "call_module":
                    module = fragment.working.get_submodule(str(node.target))
                    self._calls[id(module)].append(node)
                elif node.op == "get_attr":
                    self._reads[id(found_at(fragment.working, str(node.target)))].append(node)

    # Questions

    def hooks(self, module: nn.Module) -> list[str]:
        """Kinds of the user's hooks on `module` and on the gradients of its parameters."""
        return [*hooked(module), *state_hooks(module), *self.gradient_hooks(module.parameters())]

    def gradient_hooks(self, tensors: Iterable[torch.Tensor]) -> list[str]:
        """The user's hooks on the gradients of `tensors`."""
        names = [self._gradient_hooks.get(id(tensor)) for tensor in tensors]
        return [f"gradient hook on {name}" for name in names if name is not None]

    def why_fixed(self, tensor: torch.Tensor) -> str | None:
        """Why the elements of `tensor` must stay where they are; None if they need not."""
        hooks = self.gradient_hooks([tensor])
        if hooks:
            return f"there is a {hooks[0]}"
        if not tensor.numel():
            return "it has no elements"
        if id(tensor) in self._lies_on:
            return f"it lies in the memory of {self._lies_on[id(tensor)]} too"
        paths = [self._paths[module][0] for module, _ in self._registered[id(tensor)]]
        for (module, name), path in zip(self._registered[id(tensor)], paths, strict=True):
            if len(paths) > 1 and not (self._calls.get(module) or self._reads.get(id(tensor))):
                return f"a parameter is tied to {joined(path, name)}, which is not called"
        return None

    def reorder(self, name: str, pick: Picked, zeros: Picked | None = None) -> None:
        """Put the elements that `pick` says in place of the tensor called `name`, in each place.

        The modules that hold it are replaced by ones like them: the tensor may be another's too.
        `zeros` are elements that are left out because they are 0: a checkpoint must have them so.
        """
        root = self.program.result
        old = found_at(root, name)
        assert isinstance(old, torch.Tensor)
        self._replaced.append(old)
        made = pick.of(old)
        new = parameter_like(old, made) if isinstance(old, nn.Parameter) else made
        for module_id, own in sorted(self._registered[id(old)]):
            for path in self._paths[module_id]:
                holder = self._own(root, path)
                buffer = own in holder._buffers
                held: dict[str, Any] = holder._buffers if buffer else holder._parameters
                held[own] = new
                entry = self._take_entry(joined(path, own))
                if entry is None:
                    continue
                self.entries[joined(path, own)] = compose(entry, pick)
                if zeros is not None:
                    self.entries[f"{joined(path, own)} (unread)"] = Zeros(compose(entry, zeros))

    def fit_fields(self, paths: Iterable[str], groups: Mapping[str, int]) -> None:
        """Let the modules at `paths` say what their tensors have now, and convolutions `groups`."""
        root = self.program.result
        for path in dict.fromkeys(paths):
            fit_fields(self._own(root, path), groups.get(path))

    def mark_orders(self, path: str, orders: ChannelOrders) -> None:
        """Write on the convolution at `path` how its channels lie."""
        mark_orders(self._own(self.program.result, path), orders)

    def _own(self, root: nn.Module, path: str) -> nn.Module:
        """The module at `path`, as one that only the working side has."""
        module = root.get_submodule(path)
        if path == "" or id(module) in self._owned:
            return module
        twin = copy.copy(module)
        for field in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[field] = dict(module.__dict__[field])
        self._owned[id(twin)] = twin
        self._replaced.append(module)
        for alias in self._paths[id(module)]:
            put(root, alias, twin)
        self._paths[id(twin)] = self._paths[id(module)]
        return twin

    def call_nodes(self, module: nn.Module) -> tuple[fx.Node, ...]:
        """The graph nodes that call `module`, under whatever path."""
        return tuple(self._calls.get(id(module), ()))

    def paths_of(self, module: nn.Module) -> tuple[str, ...]:
        """Every path of `module` in the working model."""
        return tuple(self._paths.get(id(module), ()))

    def used_apart(self, layer: nn.Module) -> str | None:
        """What else than a call of `layer` uses a part of it, in words; None if nothing does."""
        for path, module in layer.named_modules():
            if path and self._calls.get(id(module)):
                return f"its {path} is called on its own as well"
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if len(self._registered.get(id(tensor), ())) > 1:
                    return f"its {joined(path, name)} is shared with another module"
                if self._reads.get(id(tensor)):
                    return f"its {joined(path, name)} is read elsewhere in the graph"
        return None

    def owns_alone(self, module: nn.Module) -> bool:
        """Whether no other module and no graph node uses the tensors of `module`."""
        tensors = [
            t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None
        ]
        return all(
            len(self._registered[id(tensor)]) == 1 and not self._reads[id(tensor)]
            for tensor in tensors
        )

    def can_expose(self, module: nn.Module) -> bool:
        """Whether the recomputed weight of `module` can be computed in the graph instead."""
        return not hooked_names(module) or _taken_over(module) is not None

    def kept_whole(self, claims: Sequence[tuple[Fragment, ConvCall]]) -> Mapping[fx.Node, str]:
        """For the calls that are about to be cut: which weights must stay whole, and why.

        A tensor may be cut where every module that registers it and every node that reads it is
        among `claims`, and all of them cut it alike.
        """
        claimed_nodes = self._claimed = {call.node for _, call in claims}
        places: set[Place] = set()
        cuts: dict[int, set[object]] = defaultdict(set)
        for fragment, call in claims:
            for key in _stored_keys(call):
                holder, name = holder_of(fragment.working, key)
                if call.path is None or claimed_nodes.issuperset(self._calls[id(holder)]):
                    places.add((id(holder), name))
                cuts[id(found_at(fragment.working, key))].add(_cut_of(call))
        found: dict[fx.Node, str] = {}
        for fragment, call in claims:
            for key in _stored_keys(call):
                tensor = found_at(fragment.working, key)
                readers = {user for node in self._reads[id(tensor)] for user in node.users}
                if len(cuts[id(tensor)]) > 1:
                    found[call.node] = f"{key} is shared by calls that would cut it differently"
                elif not places.issuperset(self._registered[id(tensor)]):
                    found[call.node] = f"{key} is shared with a module that needs it whole"
                elif id(tensor) in self._lies_on:
                    other = self._lies_on[id(tensor)]
                    found[call.node] = f"{key} lies in the memory of {other} too"
                elif not claimed_nodes.issuperset(readers):
                    found[call.node] = f"{key} is read elsewhere in the graph"
        return found

    def all_claimed(self, module: nn.Module | None) -> bool:
        """Whether every call of `module` is among the last claims."""
        return module is None or self._claimed.issuperset(self._calls[id(module)])

    # Changes

    def rows(self, tensor: torch.Tensor | None, part: Slice | None) -> torch.Tensor | None:
        """Rows of `tensor` (all of it where `part` is None), the same object for the same rows."""
        if tensor is None:
            return None
        if part is None:
            return tensor.detach().clone()
        if len(self._registered[id(tensor)]) < 2:
            return rows_of(tensor, part.start, part.stop)
        key = (id(tensor), part.start, part.stop)
        if key not in self._cut:
            # The key is an address: the tensor must not be freed while it is in use.
            self._tied.append(tensor)
            self._cut[key] = rows_of(tensor, part.start, part.stop)
        return self._cut[key]

    def replace(
        self,
        fragment: Fragment,
        path: str,
        home: str,
        branches: Sequence[nn.Module],
        rows: Mapping[str | None, Sequence[Slice]],
    ) -> None:
        """Put `branches` under `home` in place of the module at `path`, and under its aliases.

        `rows` gives, for each tensor name (None: for all others), the rows of each branch.
        """
        module = fragment.working.get_submodule(path)
        names = [*module._parameters, *module._buffers]
        for full_path in self._paths[id(module)]:
            for name in names:
                self._move(full_path, name, full_path, rows.get(name, rows.get(None, ())))
        container = nn.ModuleList(branches)
        container.training = module.training
        self._install(fragment, path, home, container)

    def replace_tensors(
        self,
        fragment: Fragment,
        keys: Mapping[str, str],
        home: str,
        branches: Sequence[nn.Module],
        rows: Mapping[str | None, Sequence[Slice]],
    ) -> None:
        """Put `branches` under `home` in place of the tensors `keys` (key -> name in a branch)."""
        full_home = fragment.full_name(home)
        for key, name in keys.items():
            attribute = key.rpartition(".")[2]
            owner = fragment.full_name(key.rpartition(".")[0])
            self._move(owner, attribute, full_home, rows[name], new_name=name)
            holder, _ = holder_of(fragment.working, key)
            if attribute in holder._non_persistent_buffers_set:
                for branch in branches:
                    branch._non_persistent_buffers_set.add(name)
            remove(fragment.working, key)
        container = nn.ModuleList(branches)
        container.training = fragment.working.training
        self._install(fragment, None, home, container)

    def home_of(self, fragment: Fragment, weight_key: str, bias_key: str | None) -> str:
        """Path for the branches of a function call whose weight is stored under `weight_key`.

        The path of the module that holds the weight, where it holds nothing else; else the path
        of the weight itself, which is free once the weight is cut.
        """
        holder, _ = holder_of(fragment.working, weight_key)
        path = weight_key.rpartition(".")[0]
        held = {joined(path, name) for name in (*holder._parameters, *holder._buffers)}
        alone = held <= {weight_key, bias_key} and not holder._modules
        return path if alone else weight_key

    def replace_picked(
        self, fragment: Fragment, path: str, branches: Sequence[nn.Module], picks: Sequence[Picked]
    ) -> None:
        """Put `branches`, each with picked channels of the module at `path`, in its place.

        A single branch takes the path itself. A counter goes to every branch as it is.
        """
        module = fragment.working.get_submodule(path)
        single = len(branches) == 1
        for full_path in self._paths[id(module)]:
            for name in (*module._parameters, *module._buffers):
                old = self._take_entry(joined(full_path, name))
                if old is None:
                    continue
                for position, pick in enumerate(picks):
                    key = joined(full_path, "" if single else str(position), name)
                    self.entries[key] = old if name == _COUNTER else compose(old, pick)
        container = branches[0] if single else nn.ModuleList(branches)
        container.training = module.training
        self._install(fragment, path, fragment.home(path), container)

    def replace_blocks(
        self,
        fragment: Fragment,
        layer: MaskedLayer,
        home: str,
        children: Mapping[str, nn.Module],
        picks: Mapping[str, Picked],
        *,
        zeros: Picked | None,
        removed: Iterable[str],
    ) -> None:
        """Put `children` in place of a layer of which only blocks are kept.

        `picks` says, for each new tensor, what it is of the layer's. A layer with a path is
        replaced as a whole, under its aliases too; of one without, the tensors that `picks` name
        and those `removed` are taken out, and `children` go under `home`.

        A checkpoint must have zeros where `zeros` says and no new tensor holds the element, and
        must decide as the layer did: in what is fixed, and in its groups.
        """
        whole = layer.path is not None
        module = fragment.working.get_submodule(layer.path or "")
        owners = self._paths[id(module)] if whole else [fragment.path]
        named = dict.fromkeys(pick.key for pick in picks.values())
        gone = [*module.state_dict()] if whole else [*named, *removed]
        for owner in owners:
            taken = {name: self._take_entry(joined(owner, name)) for name in gone}
            place = owner if whole else joined(owner, home)
            for new, pick in picks.items():
                old = taken[pick.key]
                if old is not None:
                    self.entries[joined(place, new)] = compose(old, pick)
            source = taken[layer.key]
            if zeros is not None and source is not None:
                self.entries[f"{place} (zeros)"] = Zeros(compose(source, zeros))
            self._require_decisions(layer, owner, taken)
        holder = nn.Module()
        holder.training = module.training
        for name, child in children.items():
            holder.add_module(name, child)
        for name in gone if layer.path is None else ():
            remove(fragment.working, name)
        self._install(fragment, layer.path, home, holder)

    def _require_decisions(
        self, layer: MaskedLayer, owner: str, taken: Mapping[str, Entry | None]
    ) -> None:
        """A checkpoint must decide as the layer did, whose entries were `taken` out of the map."""
        inputs, outputs = taken.get(INPUT_SCORES), taken.get(OUTPUT_SCORES)
        if layer.groups is not None and inputs is not None and outputs is not None:
            balanced = taken.get(BALANCED)
            also = () if balanced is None else (balanced.key,)
            required = Fixed.of_groups(inputs.key, outputs.key, layer.groups, *also)
            self.entries[f"{owner} (groups)"] = required
        for name, tensor in layer.fixed.items():
            key = joined(owner, name)
            entry = taken.get(name) or self.entries.get(key)
            if isinstance(entry, Entry):
                self.entries[f"{key} (fixed)"] = Fixed.exactly(entry.key, tensor)

    def expose(self, fragment: Fragment, path: str) -> str:
        """Turn a convolution module into a holder of its tensors, which the graph now reads.

        Returns the holder's path. A module that is called by others too stays what it is.
        """
        if (id(fragment), path) in self._moved:
            return self._moved[id(fragment), path]
        working = fragment.working
        module = working.get_submodule(path)
        if not self.all_claimed(module):
            return path
        taken = _taken_over(module)
        home = fragment.home(path)
        if home == path:
            holder = taken or holding(nn.Module(), module)
            for alias in self._paths[id(module)]:
                put(working, alias, holder)
        elif taken is None:
            delattr(working, path)
            holding(working, module)
        else:
            home = _HOOKED
            delattr(working, path)
            working.add_module(home, taken)
            for alias in self._paths[id(module)]:
                for name in (*taken._parameters, *taken._buffers):
                    self._move(alias, name, f"{alias}.{home}", None)
        self._moved[id(fragment), path] = home
        return home

    def current(self, fragment: Fragment, key: str) -> str:
        """Key, in the working graph, of a tensor that was stored under `key` before the pass."""
        path, _, name = key.rpartition(".")
        return joined(self._moved.get((id(fragment), path), path), name)

    def _move(
        self,
        owner: str,
        name: str,
        target: str,
        rows: Sequence[Slice] | None,
        *,
        new_name: str | None = None,
    ) -> None:
        """Record that the tensor `name` of `owner` is now rows in the branches of `target`."""
        old = self._take_entry(joined(owner, name))
        if old is None:
            return
        if rows is None:
            self.entries[joined(target, new_name or name)] = old
            return
        for position, part in enumerate(rows):
            key = joined(target, str(position), new_name or name)
            piece = Rows("", part.start, part.stop)
            self.entries[key] = old if name == _COUNTER else compose(old, piece)

    def _take_entry(self, key: str) -> Entry | None:
        """What the tensor under `key` was, taken out of the map; None if it is not in it."""
        entry = self.entries.pop(key, None)
        return entry if isinstance(entry, Entry) else None

    def _install(
        self, fragment: Fragment, path: str | None, home: str, container: nn.Module
    ) -> None:
        working = fragment.working
        aliases = [home]
        if path is not None:
            module = working.get_submodule(path)
            aliases = [home] if fragment.is_module else self._paths[id(module)]
        if home != "":
            for alias in aliases:
                put(working, alias, container)
            return
        if path is not None:
            delattr(working, path)
        for name, branch in container.named_children():
            working.add_module(name, branch)


def _stored_keys(call: ConvCall) -> Iterable[str]:
    return [s.key for s in (call.weight, call.bias) if isinstance(s, Stored)]


def _cut_of(call: ConvCall) -> object:
    """What must agree for two calls to share the pieces of a tensor.

    The groups, where each call is of a module with fields of its own; everything, where the
    branches have to be made for a function call.
    """
    if call.path is not None:
        return call.spec.groups, call.spec.transposed
    return call.spec, call.weight, call.bias
