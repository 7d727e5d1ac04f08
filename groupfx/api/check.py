"""`groupfx.check`: what a toolchain takes of a model, and the rewrite that helps where it does not.

Each convolution, and each operation on channels, is judged by the facts of a target. For each that
is not acceptable the passes that its facts name are tried, in their order, until the facts accept
what they leave, or none is left. Nothing is written here, and the given model is not changed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..convs.names import unnumbered
from ..errors import GroupfxError, MismatchError, first_line
from ..passes import make_pass
from ..rewriting import OperationPass, Pass, Pipeline, Progress, Result
from ..rewriting.graph_pass import GraphPass
from ..rewriting.subjects import subjects
from ..running.alone import alone
from ..targets import Judged, Subject, Target, target_named
from ..targets.facts import Fact
from ..toolchains import Obstacle
from .models import rewritten_for

if TYPE_CHECKING:
    from .onnx import OnnxResult

_FREEZE = "freeze-learned-groups"
_PARTS_ONLY = (
    "only its convolutions were looked at, not what stands between them: it is no single graph"
)


@dataclass(frozen=True)
class Judgement:
    """What a target makes of a model: of each subject, and of operations that a grammar knows."""

    sites: tuple[Judged, ...]
    operations: tuple[Judged, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()

    @property
    def all(self) -> tuple[Judged, ...]:
        """Convolutions, and then the operations between them."""
        return (*self.sites, *self.operations)

    @property
    def refused(self) -> tuple[Judged, ...]:
        """Those that are known not to be acceptable."""
        return tuple(e for e in self.all if not e.acceptable and e.verdict != "unknown")

    @property
    def unknown(self) -> tuple[Judged, ...]:
        """Those of which nobody has found out."""
        return tuple(each for each in self.all if each.verdict == "unknown")

    @property
    def ok(self) -> bool | None:
        """Whether all of it is acceptable; None where nobody can tell."""
        if self.refused or self.obstacles:
            return False
        return None if self.unknown else True


@dataclass(frozen=True)
class Unmended:
    """A site, or an operation, that no rewrite makes acceptable, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """The answer: `before` is the model as it is given, `after` as `passes` would leave it.

    `after` is None where nothing is to be done, or nothing can be. `left` are those that stay as
    they are. `result` is the rewritten model, proved, where it was asked for and something was
    done. `notes` say how the model was opened.
    """

    target: Target
    methods: tuple[str, ...]
    before: Judgement
    passes: tuple[Pass[Any], ...] = ()
    after: Judgement | None = None
    left: tuple[Unmended, ...] = ()
    notes: tuple[str, ...] = ()
    result: "Result | OnnxResult | None" = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool | None:
        """Whether the model as it is given is acceptable; None where nobody can tell."""
        return self.before.ok

    @property
    def last(self) -> Judgement:
        """The judgement of what is left in the end."""
        return self.before if self.after is None else self.after


@dataclass(frozen=True)
class Attempt:
    """What some passes make of a model, what they skipped and why, and the rewritten model."""

    judgement: Judgement
    skipped: Mapping[str, str]
    result: "Result | OnnxResult"


Rewrite = Callable[[Sequence[Pass[Any]], bool], Attempt]


@alone
def check(
    model: nn.Module | str | Path,
    inputs: object = None,
    *,
    target: str,
    methods: Sequence[str] = (),
    way: str = "auto",
    fix: bool = False,
    progress: Progress | None = None,
    shapes: Mapping[str | int, tuple[int, ...]] | None = None,
) -> Checked:
    """What `target` takes of `model`, a torch model or the path of an `.onnx` file.

    `target` is a name or the path of a file of facts, `methods` some of its parts. The passes that
    would help are found by trying them on a copy; with `fix` they are run once more and proved, and
    `result` has what they made. `inputs` and `way` are as in `groupfx.rewrite`; `shapes` are for an
    ONNX file that leaves its sizes open.

    Raises `UsageError` for an unknown target or method, `FileError` for a broken file of facts,
    `ModelError` where the model cannot be opened, `MismatchError` where the check of a fix fails.
    """
    meant = target_named(target)
    asked = meant.methods_named(methods)
    if isinstance(model, nn.Module):
        return _Torch(meant, asked, way, progress).checked(model, inputs, fix=fix)
    # onnx and ONNX Runtime are not needed for a torch model.
    from .check_onnx import checked_file

    return checked_file(Path(model), meant, asked, fix=fix, progress=progress, shapes=shapes)


@dataclass(frozen=True)
class _Torch:
    """Asks about torch models."""

    target: Target
    methods: tuple[str, ...]
    way: str
    progress: Progress | None

    def checked(self, model: nn.Module, inputs: object, *, fix: bool) -> Checked:
        program = Pipeline([]).opened(model, inputs, way=self.way, read_only=True)
        assert program.inputs is not None
        example = program.inputs

        def rewrite(passes: Sequence[Pass[Any]], verify: bool) -> Attempt:
            result = rewritten_for(
                self.target,
                Pipeline(passes),
                model,
                example,
                way=self.way,
                verify=verify,
                progress=self.progress,
            )
            skipped = {site.name: site.reason for site in result.report.skipped}
            return Attempt(self.judgement(result.model, example), skipped, result)

        before = self.judgement(model, example)
        notes = (*program.notes, *(() if program.way != "modules" else (_PARTS_ONLY,)))
        found = Checked(self.target, self.methods, before, notes=notes)
        return mended(found, rewrite, fix=fix)

    def judgement(self, model: nn.Module, inputs: object) -> Judgement:
        program = Pipeline([]).opened(model, inputs, way=self.way, read_only=True)
        assert program.inputs is not None
        found = judgement(subjects(program), self.target, self.methods)
        obstacles = tuple(
            each
            for each in self.target.obstacles(model, program.inputs)
            if set(each.methods) & set(self.methods)
        )
        return replace(found, obstacles=obstacles)


def judgement(asked: Iterable[Subject], target: Target, methods: Sequence[str]) -> Judgement:
    """What a target says of all subjects."""
    judged = [target.judge(subject, methods) for subject in asked]
    return Judgement(
        tuple(each for each in judged if each.subject.operation is None),
        # Of operations that no fact is about, nothing is said.
        tuple(each for each in judged if each.subject.operation is not None and each.facts),
    )


def mended(found: Checked, rewrite: Rewrite, *, fix: bool) -> Checked:
    """`found` with the passes that help, what they leave, and, with `fix`, the proved result."""
    if found.before.ok:
        return found
    plan = _Plan(found.target, found.before)
    attempt = plan.run(rewrite)
    if attempt is None:
        return replace(found, left=plan.left(found.before))
    if fix:
        attempt = rewrite(plan.passes, True)
    return replace(
        found,
        passes=tuple(plan.passes),
        after=attempt.judgement,
        left=plan.left(attempt.judgement),
        result=attempt.result if fix else None,
    )


class _Plan:
    """Which fix each site is at, and each kind of operation."""

    def __init__(self, target: Target, before: Judgement) -> None:
        self._target, self._before = target, before
        self._fixes: dict[str, tuple[str, ...]] = {}
        self._at: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._given = {each.subject for each in before.operations}
        self.passes: list[Pass[Any]] = []
        for judged in before.all:
            if not judged.acceptable:
                self._take(_key(judged), judged)

    def run(self, rewrite: Rewrite) -> Attempt | None:
        """Try until all is acceptable or nothing is left to try; None where nothing helps."""
        done: Attempt | None = None
        while True:
            try:
                self.passes = self._chosen()
            except GroupfxError as error:
                self._give_up(first_line(error))
                return None
            if not self.passes:
                return None
            try:
                done = rewrite(self.passes, False)
            except MismatchError:
                raise
            except GroupfxError as error:
                self._give_up(first_line(error))
                return None
            if not self._advance(done):
                return done

    def left(self, last: Judgement) -> tuple[Unmended, ...]:
        """Those that are not acceptable in the end, with the reason."""
        found: dict[str, str] = {}
        for judged in last.all:
            if not judged.acceptable:
                key = self._owner(judged) or _key(judged)
                found.setdefault(key, self._reasons.get(key, f"nothing helps: {judged.reason}"))
        return tuple(Unmended(key, reason) for key, reason in found.items())

    def _take(self, key: str, judged: Judged) -> None:
        self._fixes[key] = tuple(dict.fromkeys(f for fact in judged.against for f in fact.fix))
        self._at[key] = 0
        hopeless = _hopeless(judged.against)
        if hopeless is not None:
            self._fixes[key] = ()
            self._reasons[key] = f"nothing helps: {hopeless.text}"

    def _give_up(self, reason: str) -> None:
        for key, fixes in self._fixes.items():
            if self._at[key] < len(fixes):
                self._at[key] = len(fixes)
                self._reasons[key] = reason
        self.passes = []

    def _chosen(self) -> list[Pass[Any]]:
        """The passes of this round, each once, with the sites that it is for."""
        if self._target.grammar is not None and not self._at_end():
            # It judges every operation: its passes belong together.
            return [make_pass(text) for text in self._target.passes]
        wanted: dict[str, list[str]] = {}
        for key, fixes in self._fixes.items():
            if self._at[key] < len(fixes):
                wanted.setdefault(fixes[self._at[key]], []).append(key)
        passes = [self._for(text, keys) for text, keys in wanted.items()]
        learned = any(each.subject.text == "learned groups" for each in self._before.sites)
        freezes = [text for text in self._target.passes if text.startswith(_FREEZE)]
        if learned:
            passes = [*map(make_pass, freezes), *passes]
        return sorted(passes, key=_place)

    def _at_end(self) -> bool:
        return bool(self._at) and all(
            self._at[key] >= len(fixes) > 0 for key, fixes in self._fixes.items()
        )

    def _for(self, text: str, keys: Sequence[str]) -> Pass[Any]:
        """A pass for these sites alone; for all, where it is about the whole graph."""
        made = make_pass(text)
        everywhere = isinstance(made, (GraphPass, OperationPass)) or not hasattr(made, "only")
        grouped = {
            _key(each)
            for each in self._before.sites
            if each.subject.numbers is None or each.subject.numbers.groups > 1
        }
        if everywhere or grouped <= set(keys):
            return made
        return replace(made, only=tuple(keys))  # type: ignore[type-var]

    def _advance(self, attempt: Attempt) -> bool:
        """Go to the next fix of what is still not acceptable; whether anything is to be tried."""
        moved = False
        for judged in attempt.judgement.all:
            if judged.acceptable:
                continue
            key = self._owner(judged)
            # What freezing made of a learned layer is judged for the first time here.
            if key is None or (not self._fixes[key] and _key(judged) not in self._at):
                key = _key(judged)
                self._take(key, judged)
                moved = moved or bool(self._fixes[key])
                continue
            if self._at[key] >= len(self._fixes[key]):
                continue
            self._reasons[key] = attempt.skipped.get(key, judged.reason)
            self._at[key] += 1
            moved = True
        return moved and self._target.grammar is None

    def _owner(self, judged: Judged) -> str | None:
        """The site or the kind of operation, of those that are being mended, that it is of."""
        key, site = _key(judged), unnumbered(judged.subject.site)
        of_site = next((k for k in self._at if site == k or site.startswith(f"{k}.")), None)
        # An operation that was there before is no consequence of what was done at a site.
        made = judged.subject.operation is None or judged.subject not in self._given
        if made and of_site is not None:
            return of_site
        return key if key in self._at else None


def _key(judged: Judged) -> str:
    """What a fix is for: a site, or all operations of a kind."""
    subject = judged.subject
    return unnumbered(subject.site) if subject.operation is None else f"each {subject.operation}"


def _hopeless(facts: Sequence[Fact]) -> Fact | None:
    """What speaks against a site and has no remedy; None where it has none of that kind."""
    return next((f for f in facts if not f.fix and f.verdict != "unknown"), None)


def _place(entry: Pass[Any]) -> int:
    """Passes over sites, then over the graph, then over operations."""
    return 2 * isinstance(entry, OperationPass) + isinstance(entry, GraphPass)
