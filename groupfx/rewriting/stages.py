"""The passes of a pipeline in stages, each proved against what the stage before it left.

A pass over sites compares each with the graph that the model was opened as. A pass over operations
leaves another graph, and what follows is compared with that one. So the proof is a chain of small
links; at its end the whole model is compared with the one that the user gave.

The map of a stage says what the stage made of its own beginning; behind one another, the maps say
what became of the original.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import fx

from ..convs.calls import ConvCall, Stored, convs
from ..running.kept import values_kept
from ..state.keys import state_keys
from ..state.map import Entry, Requirement, Rows, StateDictMap
from ..state.reversed_map import ReversedMap
from ..tracing.exporting import ExportedModule
from ..tracing.graphs import run_graph, snapshot
from ..tracing.program import Program
from ..verify import Change
from .checking import Progress, check_sites
from .driver import PassResult, run_pass
from .folding import moved_otherwise
from .graph_pass import GraphPass
from .operation_pass import OperationPass, shape_of
from .outside import Outside
from .pass_ import Pass
from .report import RewrittenSite
from .respelling import checked


class Stages:
    """Runs passes over a program, and keeps what they did.

    `results` are those of all passes. `changes` is what was changed that must not be; None where
    nothing is verified.
    """

    def __init__(self, program: Program, *, verify: bool, progress: Progress | None) -> None:
        self.program = program
        self.results: list[PassResult] = []
        self.changes: tuple[Change, ...] | None = None
        self._verify, self._progress = verify, progress
        self._maps: list[StateDictMap] = []
        self._folded = False
        self._begin(program)

    def run(self, pass_: Pass[Any]) -> None:
        """Run one more pass."""
        respells = isinstance(pass_, OperationPass) and self.program.way != "modules"
        if respells and self._results:
            self._next()
        if isinstance(pass_, GraphPass) and not self._folded:
            # It leaves no tensor where it was: what is before it is compared now.
            self.compare()
            self.check()
            self._folded = True
        made = run_pass(pass_, self._stage, self._local)
        self.results.append(made)
        self._tell_fixed_sizes(made)
        if made.respelled:
            self._next()

    def _tell_fixed_sizes(self, made: PassResult) -> None:
        """Note what holds for images of the example's size alone from now on."""
        fixed = [each for each in made.respelled if each.fixes_sizes]
        if not fixed:
            return
        places = (f"{each.before} ({each.line or each.name})" for each in fixed)
        self.program.notes = (
            *self.program.notes,
            "fixed to the size of the example, so that images of another come out wrong: "
            + ", ".join(dict.fromkeys(places)),
        )
        for program in (self.program, self._stage):
            program.dynamic = False

    def compare(self) -> None:
        """Compare what the last stage left with what it began with."""
        if self._before is None:
            return
        results = self._results
        sites = [site for result in results for site in result.sites]
        found: Iterable[Change]
        if self._folded:
            found = moved_otherwise(self._stage, sites, self._local)
        else:
            respelled = [each for result in results for each in result.respelled]
            found = self._before.changes(sites, self._local, respelled)
        self.changes = (*(self.changes or ()), *found)

    def check(self) -> None:
        """Give a verdict to each site and each operation of the last stage that has none."""
        if not self._verify:
            return
        results = self.results[self._first :]
        sites = [site for result in results for site in result.sites]
        stage = self._stage
        with values_kept((self.program.model, stage.model, stage.result), self.program.written):
            verdicts = iter(check_sites(stage, sites, self._local, self._progress))
        self.results[self._first :] = [
            replace(
                result,
                sites=tuple(map(self._named_as_given, islice(verdicts, len(result.sites)))),
                respelled=tuple(
                    checked(
                        result.respelled,
                        self._local,
                        self.program,
                        modes=not isinstance(self.program.result, ExportedModule),
                    )
                ),
            )
            for result in results
        ]

    def state_map(self) -> StateDictMap:
        """The map from the result to the original."""
        whole, *others = *self._maps, self._map()
        for following in others:
            whole = whole.then(following)
        return whole

    @property
    def _results(self) -> list[PassResult]:
        """Those of the last stage that did something."""
        stage = self.results[self._first :]
        return [each for each in stage if each.sites or each.respelled or each.fold is not None]

    def _is_transient(self, entry: Entry | Requirement) -> bool:
        return isinstance(entry, Entry) and entry.key in self._transient

    def _begin(self, program: Program, unheld: frozenset[str] = frozenset()) -> None:
        self._stage = program
        self._keys = state_keys(program.model)
        stored, given = state_keys(program.result).keys(), self._keys.keys()
        # A tensor that no checkpoint holds, such as one that a trace found as a plain attribute, is
        # moved too, and the check has to know where.
        self._transient = (frozenset(_stored_weights(program)) - stored) | (stored - given) | unheld
        self._local: dict[str, Entry | Requirement] = {
            key: Rows(key) for key in stored | self._transient
        }
        self._dropped = given - stored
        self._first = len(self.results)
        self._folded = False
        self._before = Outside.of(program) if self._verify else None

    def _next(self) -> None:
        """Close the last stage; what it left is what the next one begins with."""
        self.compare()
        self.check()
        self._maps.append(self._map())
        whole = self._stage.whole
        assert self._stage.inputs is not None
        made = any(result.sites or result.fold for result in self._results)
        if made or any(map(_is_unshaped, whole.working.graph.nodes)):
            run_graph(whole.working, whole.working, self._stage.inputs)
        reference = snapshot(whole.working)
        fragments = [each.following(reference) for each in self._stage.fragments]
        unheld = (key for key, entry in self._local.items() if self._is_transient(entry))
        self._begin(replace(self._stage, model=reference, fragments=fragments), frozenset(unheld))

    def _named_as_given(self, site: RewrittenSite) -> RewrittenSite:
        """The site, with the tensors that it zeroed under their names in the given model."""
        if not site.zeroed or not self._maps:
            return site
        whole, *others = self._maps
        for following in others:
            whole = whole.then(following)
        return replace(site, zeroed={whole.entries[k].key: v for k, v in site.zeroed.items()})

    def _map(self) -> StateDictMap:
        # Of what a later stage began with, what it made nothing of is told too.
        dropped = {*self._dropped, *(self._keys if self._maps else ())}
        model = self._stage.result
        sites = (site for result in self._results for site in result.sites)
        joined = {key: rows for site in sites for key, rows in site.joined.items()}
        local = {key: entry for key, entry in self._local.items() if not self._is_transient(entry)}
        if not joined:
            paths = StateDictMap(local, dropped=dropped, model=model)
            renamed = any(path != key for path, key in self._keys.items())
            return paths.by_keys(self._keys, state_keys(model)) if renamed else paths
        kept = {key: entry for key, entry in local.items() if isinstance(entry, Rows)}
        back = {rows.key: Rows(key) for key, rows in kept.items()} | joined
        return ReversedMap(back, dropped=dropped, model=model)


def _stored_weights(program: Program) -> Iterator[str]:
    """Names of the tensors that functions of convolution read as they are stored."""
    for fragment in program.fragments:
        for call in convs(fragment.working).values():
            if isinstance(call, ConvCall):
                for source in (call.weight, call.bias):
                    if isinstance(source, Stored):
                        yield fragment.working_key(source.key)


def _is_unshaped(node: fx.Node) -> bool:
    """Whether it calls something and nothing is known of its value: it may be new, and a tensor."""
    calls = node.op in ("call_function", "call_module", "call_method")
    return calls and shape_of(node) is None
