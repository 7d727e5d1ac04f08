"""JSON Schemas of what the command line writes with `--json`.

Each document names its schema and version in the key `schema`, such as `groupfx.report/1`. Within
a version, keys are only added. Nothing here imports torch.
"""

import json
from importlib import resources
from typing import Any

NAMES = (
    "groupfx.report/1",
    "groupfx.inspect/1",
    "groupfx.check/1",
    "groupfx.groups/1",
    "groupfx.passes/1",
    "groupfx.export/1",
    "groupfx.tune/1",
    "groupfx.validation/1",
    "groupfx.onnx/1",
    "groupfx.conformance/1",
    "groupfx.zoo/1",
    "groupfx.zoo-model/1",
    "groupfx.bench/1",
)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the documents whose `schema` is `name`.

    Raises KeyError for a name that is none of `NAMES`.
    """
    if name not in NAMES:
        raise KeyError(f"there is no schema {name!r}: choose one of {', '.join(NAMES)}")
    kind, _, version = name.removeprefix("groupfx.").partition("/")
    text = resources.files(__name__).joinpath(f"{kind}-{version}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
