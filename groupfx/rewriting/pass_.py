"""What a pass is: options, a decision for each site, and a rewrite that cannot fail."""

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy.typing as npt
from torch import Tensor, fx, nn

from ..convs.calls import ConvCall, Unreadable, convs
from ..convs.names import unnumbered
from ..convs.spec import ConvSpec
from ..errors import RewriteError, UsageError
from ..plan.branches import Branches
from ..plan.choice import Choice
from ..plan.forms import FormPlan
from ..plan.site_plan import SitePlan
from .site import Site

Description = TypeVar("Description")


@dataclass(frozen=True)
class Skip:
    """A site that a pass leaves as it is, and why: the layer, the numbers and the remedy."""

    reason: str


@dataclass(frozen=True)
class Rewritten:
    """What a pass made of a site.

    `output` gives the value that `end` gave; everything from the convolution to `end` is replaced.
    `form` says in a few words what stands there now; `brief` says of it only what the original does
    not say, for narrow tables (None: `form` is short enough). `notes` are what the user should know
    (a text, or a `Note`, which others can be told with). `macs` are those of one call for one
    sample afterwards, None where they are what they were. `zeroed` says, for keys of the original,
    which entries (bool, rows by columns) were set to 0: the check is then against an original that
    has those zeros, and the difference is reported. `plan` is remembered with the graph: whoever
    exports or merges the site need not guess what it was. `choice` is what the form is expected to
    take, where it was chosen by that.
    """

    output: fx.Node
    end: fx.Node
    form: str
    branches: int
    notes: tuple[str, ...] = ()
    macs: int | None = None
    zeroed: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    plan: SitePlan | None = None
    brief: str | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class Option:
    """One field of a pass, as the command line shows it."""

    name: str
    default: Any
    choices: tuple[str, ...]
    text: str


class Convolution(Protocol):
    """A convolution as both realms see it: a site of a torch graph, or a node of an ONNX one."""

    @property
    def name(self) -> str:
        """The name of its site."""

    @property
    def spec(self) -> ConvSpec:
        """Its fields."""

    @property
    def frozen(self) -> bool:
        """Whether freezing learned groups made it."""

    @property
    def branch_of(self) -> str | None:
        """The site that it is a branch of, where splitting that site has made it."""

    def weight_array(self) -> npt.NDArray[Any] | None:
        """The stored weight, `[out, in / groups, *kernel]`; None if it is computed."""


class Pass(ABC, Generic[Description]):
    """A rewrite of convolution sites. Subclasses are frozen dataclasses; fields are options.

    `plan` says in integers what becomes of a convolution, if that takes nothing of torch: then the
    pass works on ONNX files too. `match` looks and decides for a site of a torch graph, without
    changing anything. `rewrite` gets what `match` returned. The driver owns everything else: the
    loop, clean-up, counting and the report.
    """

    exact: ClassVar[bool] = True
    """Whether a rewritten site computes the products of the original and no others."""

    refuses: ClassVar[tuple[str, ...]] = ()
    """What the pass leaves as it is, a line each, for the catalogue."""

    moves_norms: ClassVar[bool] = False
    """Whether a BatchNorm that follows goes along, where the realm can do that."""

    moves_quantisation: ClassVar[bool] = False
    """Whether the quantisation of what goes in and of what comes out goes along, in files."""

    reads_values: ClassVar[bool] = False
    """Whether what becomes of a site rests on the numbers in its weights."""

    def plan(self, conv: Convolution) -> Branches | FormPlan | Skip:
        """How to execute `conv`: split into branches, or by blocks of its weight."""
        raise NotImplementedError(f"{self.pass_name()} has no plan without torch")

    @classmethod
    def works_on_onnx(cls) -> bool:
        """Whether `plan` says all that the pass does."""
        return cls.plan is not Pass.plan

    @classmethod
    def keeps_whole(cls, module: nn.Module) -> bool:
        """Whether the pass wants to see a call of `module` where a trace would look into it."""
        return False

    @classmethod
    def pass_name(cls) -> str:
        """The class's name in kebab-case, such as `split-grouped-conv`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    @abstractmethod
    def match(self, site: Site) -> Description | Skip:
        """A small frozen description of what to do at `site`, or why to leave it."""

    @abstractmethod
    def rewrite(self, site: Site, description: Description) -> Rewritten:
        """Emit what replaces `site`."""

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        """The calls in the graph of `root` that may be sites of this pass, in order."""
        return convs(root)

    def wants(self, conv: Convolution) -> bool:
        """Whether this kind of site concerns the pass at all; the others are not reported."""
        return conv.spec.groups > 1

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The pass's fields with defaults, choices and their line of text."""
        texts, hints = _texts(cls), get_type_hints(cls)
        return tuple(
            Option(field.name, field.default, _choices(hints[field.name]), texts[field.name])
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        )

    @classmethod
    def from_options(cls, values: Mapping[str, Iterable[str]]) -> Self:
        """A pass from options as text, each given once or more often.

        Raises UsageError for an unknown option or a value that is none of its choices.
        """
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        hints = get_type_hints(cls)
        parsed = {}
        for name, texts in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UsageError(
                    f"{cls.pass_name()} has no option {name!r}: {hint}"
                    f"it has {', '.join(sorted(known)) or 'none'}"
                )
            parsed[name] = _parse(cls.pass_name(), name, hints[name], list(texts))
        return cls(**parsed)

    def spelled(self) -> str:
        """As the command line takes it: `name:option=value,option=value`."""
        given = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                each = value if isinstance(value, tuple) else (value,)
                given += [f"{field.name}={one}" for one in each]
        return ":".join([self.pass_name(), *([",".join(given)] if given else [])])

    def __str__(self) -> str:
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{self.pass_name()}({', '.join(changed)})" if changed else self.pass_name()


def name_matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a site's name, without the number of its call, fits one of the shell patterns."""
    plain = unnumbered(name)
    # A name of an exporter may hold brackets, which a pattern reads in another way.
    return any(plain == pattern or fnmatchcase(plain, pattern) for pattern in patterns)


def unwanted(names: Iterable[str], only: Iterable[str], skip: Iterable[str]) -> str | None:
    """Why the options `only` and `skip` leave a site with these names alone, or None."""
    if only and not any(name_matches(name, only) for name in names):
        return f"not among only={','.join(only)}"
    if any(name_matches(name, skip) for name in names):
        return f"named by skip={','.join(skip)}"
    return None


def require_named(pass_: Pass[Any], wanted: Iterable[str], others: Iterable[str]) -> None:
    """Raise `RewriteError` where the options `only` and `skip` of a pass name what is not there.

    `wanted` are the names of the sites that concern the pass, `others` those of the rest.
    """
    sites, rest = (dict.fromkeys(map(unnumbered, names)) for names in (wanted, others))
    for option, known in (("only", sites), ("skip", sites | rest)):
        for pattern in getattr(pass_, option, ()):
            if not any(name_matches(name, (pattern,)) for name in known):
                told = f"{pass_.pass_name()}: {option}={pattern} names no site"
                if any(name_matches(name, (pattern,)) for name in rest):
                    told += " of this pass, but a convolution that it has nothing to do with"
                raise RewriteError(f"{told}; {_nearest(pattern, list(known))}")


def _nearest(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "there is none in this model"
    ends = [name for name in names if name.endswith(f".{pattern}")]
    near = [*ends, *difflib.get_close_matches(pattern, names, n=_NEAR), *names]
    shown = list(dict.fromkeys(near))[:_NEAR]
    return f"the {'nearest ' if len(names) > _NEAR else ''}sites are {', '.join(shown)}"


_NEAR = 3


@cache
def _texts(cls: type) -> dict[str, str]:
    """The line of text under each field, read from the source of the class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[field.target.id] = inspect.cleandoc(str(text.value.value))
    return texts


def _choices(hint: Any) -> tuple[str, ...]:
    return tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def _parse(pass_name: str, name: str, hint: Any, texts: list[str]) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        return tuple(texts)
    if len(texts) > 1:
        raise UsageError(f"{pass_name}: {name} is given {len(texts)} times, and takes one value")
    text = texts[0]
    if origin is Literal:
        if text not in _choices(hint):
            choices = ", ".join(_choices(hint))
            raise UsageError(f"{pass_name}: {name}={text!r} is none of {choices}")
        return text
    if origin in (Union, UnionType):
        if text.lower() == "none" and NoneType in get_args(hint):
            return None
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{pass_name}: {name}={text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError as error:
        raise UsageError(f"{pass_name}: {name}={text!r} is not {hint.__name__}") from error
