"""Our own file: a rewritten model as plain data that `torch.load(weights_only=True)` reads.

A pickled model runs code when it is loaded, and a pickled `GraphModule` carries Python source. A
file of ours holds neither. It is one table:

| key | what |
|---|---|
| `format`, `version` | `"groupfx-archive"`, and the version of the format (1) |
| `groupfx`, `torch`, `created` | which versions wrote it, and when (UTC) |
| `way` | `"trace"`, `"export"` or `"modules"` |
| `graphs` | path -> index in `modules`; the path is empty for a whole model |
| `calls` | way `modules`: swapped calls of functions: `path`, `spec`, and the `graph`'s index |
| `modules` | one table a module: class, fields, parameters, buffers, children, or a graph |
| `tensors` | one table a tensor: `data`, `parameter`, `requires_grad` |
| `state` | way `modules`: the state_dict of the whole model, else None |
| `inputs`, `report` | example inputs (dtypes and shapes) and the report of the rewrite |

With plain torch, on any machine:

    data = torch.load("model.groupfx.pt", weights_only=True)
    data["report"], data["modules"][0], data["tensors"][0]["data"]

A node of a graph is `{"op", "name", "target", "args", "kwargs"}`. What a target may be is listed in
`operators`, what a class may be in `module_classes`, and how arguments are written in `values`.
"""

from .applying import apply, load_state
from .content import Archive, ArchiveInfo, Calls, decode_graph, encode_graph
from .file import check_replaceable, is_archive, read, write

__all__ = [
    "Archive",
    "ArchiveInfo",
    "Calls",
    "apply",
    "check_replaceable",
    "decode_graph",
    "encode_graph",
    "is_archive",
    "load_state",
    "read",
    "write",
]
