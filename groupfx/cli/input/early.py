"""What can be refused at once, before torch is loaded."""

from collections.abc import Sequence

from ...errors import FileError, UsageError
from ...files.existing import require_model
from ...passes import PASSES, name_and_options, pass_class
from ...targets import target_named, target_names
from .options import GroupsCommand


def require_names(passes: Sequence[str] | None, target: str | None) -> None:
    """Raise `UsageError` for the name of no pass or no target, with the one that was meant."""
    if passes and target is not None:
        raise UsageError("give -p or --target, not both: a target is a list of passes")
    for text in passes or ():
        name, _ = name_and_options(text)
        if name not in PASSES:
            pass_class(name)
    target_named(target)


def require_target(name: str | None) -> None:
    """Raise `UsageError` where no target is named, or one that there is not."""
    if name is None:
        raise UsageError(f"name a target: --target {', '.join(target_names())}, or a file of facts")
    target_named(name)


def require_models(options: GroupsCommand) -> None:
    """Refuse what is not one model and no series, and options of the one for the other."""
    for path in options.models:
        if path.is_dir() and len(options.models) > 1:
            raise FileError(f"{path} is a folder: give one folder, or files")
        if not path.is_dir():
            require_model(path)
    of_model = {
        "--input-shape": options.file.input_shape,
        "--arch": options.file.arch,
        "--trust-pickle": options.file.trust_pickle,
        "--python-path": options.file.python_path,
    }
    given = [option for option, value in of_model.items() if value]
    if options.series and given:
        raise UsageError(
            f"{given[0]} is for one model: the checkpoints of a series are read as data"
        )
    if options.filters and not options.series:
        raise UsageError("--filters is for a series: give several checkpoints, or a folder of them")
