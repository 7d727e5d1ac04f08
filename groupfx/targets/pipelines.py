"""What runs where no pass is named: by default, and for each target."""

from collections.abc import Mapping

PIPELINES: Mapping[str, tuple[str, ...]] = {
    "default": ("split-grouped-conv:frozen=keep", "freeze-learned-groups"),
    "plinio": ("freeze-learned-groups", "split-grouped-conv"),
    "onnxruntime": ("freeze-learned-groups",),
}
