"""From what a user says of a model, in texts, to the model in memory and inputs for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ..errors import ModelError, UsageError
from ..files.archive import Archive
from ..files.existing import factory_in
from ..files.models import read_model
from ..running.copies import copied
from ..running.guess import Declared, InferredInputs, inputs_for
from ..running.inputs import ExampleInputs
from ..running.shapes import InputShape, inputs_of_shapes, parse_input_shape


class Described(Protocol):
    """How the file of a model is read, and what it is run on, as the command line names it."""

    @property
    def input_shape(self) -> Sequence[str] | None: ...

    @property
    def arch(self) -> str | None: ...

    @property
    def arch_args(self) -> str | None: ...

    @property
    def key(self) -> str | None: ...

    @property
    def trust_pickle(self) -> bool: ...

    @property
    def python_path(self) -> Sequence[Path] | None: ...


@dataclass(frozen=True)
class ModelOptions:
    """Which model to read, how, and what to run it on."""

    path: Path
    input_shapes: tuple[InputShape, ...]
    arch: str | None
    arch_args: Mapping[str, Any]
    key: str | None
    trust_pickle: bool
    python_path: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path, given: Described) -> "ModelOptions":
        """Read the texts; what is wrong with them is said before anything is loaded."""
        if given.arch_args is not None and given.arch is None and factory_in(path) is None:
            raise UsageError("--arch-args are the arguments of --arch: give --arch as well")
        for folder in given.python_path or ():
            if not folder.is_dir():
                raise UsageError(f"--python-path {folder} is not a folder")
        return cls(
            path=path,
            input_shapes=tuple(parse_input_shape(text) for text in given.input_shape or ()),
            arch=given.arch,
            arch_args={} if given.arch_args is None else _arguments(given.arch_args),
            key=given.key,
            trust_pickle=given.trust_pickle,
            python_path=tuple(given.python_path or ()),
        )

    def require_onnx(self) -> None:
        """Raise `UsageError` for an option that says how to read a file of torch's."""
        for option, value in (("--arch", self.arch), ("--key", self.key)):
            if value is not None:
                raise UsageError(
                    f"{option} is for files of torch's, and {self.path} is an ONNX file, which "
                    "holds one whole network: leave it out"
                )

    @property
    def shapes(self) -> dict[str | int, tuple[int, ...]]:
        """The given shapes by name or position, for ONNX files that leave sizes open."""
        return {
            position if shape.name is None else shape.name: shape.sizes
            for position, shape in enumerate(self.input_shapes)
        }


@dataclass(frozen=True)
class OpenedFile:
    """A model that was read.

    `kind` is what the file is (see `ReadModel.source`), `inputs_source` says where the inputs came
    from, `archive` is there for a file of ours, and `notes` say which of several models this is.
    """

    path: Path
    model: nn.Module
    kind: str
    inputs: ExampleInputs
    inputs_source: str
    archive: Archive | None
    notes: tuple[str, ...]

    @property
    def copyable(self) -> bool:
        """Whether a rewrite can work on a copy; what cannot be copied may be changed here, since
        the model is nobody else's.
        """
        try:
            copied(self.model, share=True)
        except ModelError:
            return False
        return True

    @property
    def document(self) -> dict[str, Any]:
        """What was read, as plain data."""
        return {"read": str(self.path), "kind": self.kind, "notes": list(self.notes)}

    @property
    def text(self) -> str:
        """What was read, in words."""
        model = type(self.model).__name__
        words = {
            "archive": "a file of groupfx",
            "module": f"a pickled {model}",
            "state_dict": f"weights of {model}",
            "safetensors": f"weights of {model} (safetensors)",
            "exported": "a program that torch.export wrote",
            "factory": f"a {model}, as it was made",
        }
        return f"{self.path}: {words.get(self.kind, self.kind)}"


def open_source(options: ModelOptions, declared: Sequence[Declared] = ()) -> OpenedFile:
    """Read the model and make the inputs; its `notes` say which of several models was taken.

    The inputs have the sizes that another file of the network has `declared`, unless the options
    say others.

    Raises `FileError`, `ModelError` or `UsageError`.
    """
    called = options.arch is not None or factory_in(options.path) is not None
    read = read_model(
        options.path,
        trust_pickle=options.trust_pickle,
        arch=options.arch,
        arch_args=options.arch_args,
        key=options.key,
        # The console script, unlike `python -m`, does not look in the current folder by itself.
        python_path=options.python_path if not called else (*options.python_path, Path()),
    )
    if options.input_shapes:
        inputs = inputs_of_shapes(options.input_shapes, read.model)
        inputs_source = "as given"
    else:
        known = ExampleInputs.from_description(read.inputs) if read.inputs else None
        found = inputs_for(read.model, known, declared)
        inputs, inputs_source = found.inputs, _found(found)
    return OpenedFile(
        options.path, read.model, read.source, inputs, inputs_source, read.archive, read.notes
    )


def _found(inferred: InferredInputs) -> str:
    """Where the inputs came from; their shape is told anyway."""
    source = f": {inferred.source}" if inferred.layer is None else f" from {inferred.layer}"
    text, told, guessed = f"inferred{source}", inferred.told, inferred.inputs.guessed
    if told is not None and told != inferred.source:
        text = told if told.startswith("as ") else f"{text}, {told}"
    if guessed is None:
        return text
    return f"{text}; {guessed} is a guess: give yours with --input-shape"


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--arch-args {text!r} is not JSON: {error}; {_EXAMPLE}") from error
    if not isinstance(arguments, dict):
        raise UsageError(f"--arch-args {text!r} is not a JSON object: {_EXAMPLE}")
    return arguments


_EXAMPLE = "write keyword arguments, such as '{\"num_classes\": 10}'"
