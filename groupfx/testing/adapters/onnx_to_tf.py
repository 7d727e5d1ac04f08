"""onnx2tf: an ONNX model as a LiteRT file in channels-last layout, run by TensorFlow Lite."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case
from ..kit.known import Array
from .choosing import one_in

# A conversion takes seconds.
_CONVERTED = 12


def _run(case: Case) -> Outputs:
    import onnx2tf
    import tensorflow

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        path.write_bytes(case.onnx.SerializeToString())
        names = [each.name for each in case.program.inputs]
        onnx2tf.convert(
            input_onnx_file_path=str(path),
            output_folder_path=folder,
            keep_ncw_or_nchw_or_ncdhw_input_names=names,
            copy_onnx_input_output_names_to_tflite=True,
            non_verbose=True,
        )
        content = (Path(folder) / "case_float32.tflite").read_bytes()
    declared = {answer.name: answer.value for answer in case.answers[0]}
    interpreter = tensorflow.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details(), interpreter.get_output_details()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        for detail in given:
            interpreter.set_tensor(detail["index"], feeds[_named(detail["name"], [*feeds])])
        interpreter.invoke()
        outputs = [*case.program.outputs]
        found = {_named(d["name"], outputs): interpreter.get_tensor(d["index"]) for d in made}
        return [_channels_first(found[name], declared[name]) for name in outputs]

    return outputs_by_name(case, run)


def _named(name: str, known: Sequence[str]) -> str:
    """Which of our names `serving_default_x:0` is; one alone needs none."""
    inner = name.partition(":")[0].removeprefix("serving_default_")
    return known[0] if len(known) == 1 else inner


def _channels_first(array: Array, answer: Array) -> Array:
    """Most outputs are channels-last, some are not; where sizes do not tell, numbers do."""
    moved = np.moveaxis(array, -1, 1) if array.ndim > 2 else array
    if array.shape != answer.shape:
        return moved
    if moved.shape != answer.shape:
        return array
    return min((array, moved), key=lambda each: float(np.abs(each - answer).sum()))


def _fixed(case: Case) -> bool:
    """Not those whose files it writes for one size, or in another type."""
    return case.kind not in ("dynamic", "float16")


ADAPTERS = (Adapter("onnx2tf", _run, ("onnx2tf", "tensorflow"), one_in(_CONVERTED, _fixed)),)
