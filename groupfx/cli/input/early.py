"""What can be refused at once, before torch is loaded."""

from collections.abc import Sequence

from ...errors import UsageError
from ...passes import PASSES, pass_class
from ...targets import target_named


def require_names(passes: Sequence[str] | None, target: str | None) -> None:
    """Raise `UsageError` for the name of no pass or no target, with the one that was meant."""
    if passes and target is not None:
        raise UsageError("give -p or --target, not both: a target is a list of passes")
    for text in passes or ():
        name = text.partition(":")[0]
        if name not in PASSES:
            pass_class(name)
    target_named(target)
