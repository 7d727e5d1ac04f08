"""What can be refused at once, before torch is loaded."""

from collections.abc import Sequence
from difflib import get_close_matches

from ...errors import UsageError
from ...passes import PASSES, pass_class
from ...targets.pipelines import PIPELINES


def require_names(passes: Sequence[str] | None, target: str | None) -> None:
    """Raise `UsageError` for the name of no pass or no target, with the one that was meant."""
    if passes and target is not None:
        raise UsageError("give -p or --target, not both: a target is a list of passes")
    for text in passes or ():
        name = text.partition(":")[0]
        if name not in PASSES:
            pass_class(name)
    if target is not None and target not in PIPELINES:
        targets = [name for name in PIPELINES if name != "default"]
        near = get_close_matches(target, targets, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no target {target!r}: {hint}choose one of {', '.join(targets)}")
