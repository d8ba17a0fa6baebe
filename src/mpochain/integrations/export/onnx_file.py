"""Format ``onnx``: a file that ONNX Runtime and other programs run."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpochain.errors import ExportError
from mpochain.integrations.export.captured import Captured
from mpochain.integrations.export.format import Format

__all__ = ["OnnxFile"]

# Bytes of tensors from which they are written to a file of their own; a file of ONNX has at most 2 GiB.
_OWN_FILE = 3 << 29


class OnnxFile(Format):
    """File of ONNX, written by ``torch.onnx``; tensors of over 1.5 GiB are in a second file ``NAME.onnx.data``."""

    name = "onnx"
    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, captured: Captured, file: Path) -> None:
        """See the base class.

        Raises:
            ExportError: the model needs an operation that ONNX lacks.
        """
        stored = {id(value): value for value in captured.program.state_dict.values()}
        size = sum(value.numel() * value.element_size() for value in stored.values())
        with _quiet():
            try:
                written: Any = torch.onnx.export(
                    captured.program,
                    captured.sample.tensors,
                    dynamo=True,
                    # Otherwise small layers are computed once and stored dense.
                    optimize=False,
                    input_names=captured.inputs,
                    output_names=captured.outputs,
                    verbose=False,
                )
            except torch.onnx.errors.OnnxExporterError as error:
                raise ExportError(
                    f"the model cannot be expressed in ONNX: {_reason(error)}. Export it to format 'torch' or "
                    "'aoti', or make the layer that needs this dense (mpochain.to_dense)"
                ) from error
            written.save(file, external_data=size > _OWN_FILE)

    def tensors(self, captured: Captured, file: Path) -> dict[str, int]:  # noqa: ARG002  # see the base class
        """See the base class."""
        import onnx

        model = onnx.load(str(file), load_external_data=False)
        sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
        for nodes in (model.graph.node, *(function.node for function in model.functions)):
            for node in nodes:
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        sizes[f"constant {node.name or node.output[0]}"] = math.prod(attribute.t.dims)
        return sizes

    def runner(self, file: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """See the base class."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            # Without constant folding, which would compute in memory what is exported compactly.
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # its exceptions have no common base class
            raise ExportError(
                f"ONNX Runtime cannot run the file on this processor: {_reason(error)}. Export the model in float32, "
                "or give check=False if another program runs it"
            ) from error
        names = [value.name for value in session.get_inputs()]

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            values = dict(zip(names, (tensor.cpu().numpy() for tensor in inputs), strict=True))
            return [torch.from_numpy(output) for output in session.run(None, values)]

        return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the remarks of torch.onnx on operations of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
