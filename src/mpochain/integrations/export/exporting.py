"""Export of a model to one file, checked against the model at other shapes before it takes its place."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, ExportError, OutputError
from mpochain.integrations.export.captured import Captured, capture, in_evaluation
from mpochain.integrations.export.format import Format
from mpochain.integrations.export.formats import FORMATS
from mpochain.surgery.finding import require_module
from mpochain.system.faults import output_errors
from mpochain.system.files import require_writable, sync_folder
from mpochain.system.paths import as_path, require_path

__all__ = ["Exported", "export", "require_exportable"]

# Most elements of a constant in a file that is no tensor of the model, such as a shape.
_CONSTANT = 64


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the file.
        format: its format.
        inputs: names of its inputs.
        outputs: names of its outputs.
        numbers: numbers in the file, as many as the model has.
        bytes: size of the file, and of the file of tensors beside it if there is one.
        difference: largest difference from the model's outputs in units of their largest magnitude; None if it was not
            checked.
    """

    path: Path
    format: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: int
    bytes: int
    difference: float | None


def export(
    model: nn.Module,
    path: Path | str,
    format: str = "onnx",  # noqa: A002  # the word for it
    *,
    inputs: Tensor | Sequence[Tensor] | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Write a model, compressed or dense, to one file that runs without this library.

    The batch, and the length of a text, may have any size in the file. Compressed layers stay compressed: the file has
    as many numbers as the model. Chains are contracted core by core, never by the dense matrix, and layers in codes
    keep their codes, which are dequantised at every call. A cached dense matrix (:func:`mpochain.set_execution`) is
    not written. The model is recorded in evaluation mode without a key-value cache, and is unchanged afterwards.

    Args:
        model: a model of transformers that reads token ids, or any other module, with ``inputs``.
        path: the file, ending in ``.onnx``, or ``.pt2`` for the other formats.
        format: ``"onnx"`` for ONNX Runtime and others, ``"torch"`` for ``torch.export.load``, or ``"aoti"`` for machine
            code by AOTInductor, which needs a C++ compiler and runs on this kind of processor only.
        inputs: an example input, or several, for a module that is no model of transformers. The first axis, of at least
            2, is the batch. The second is the length for integers, and for tensors of three or more axes, unless the
            model works for one size of it alone.
        check: whether the file is run with random inputs of three other shapes and compared with the model.
        overwrite: whether an existing file is replaced.

    Returns:
        What was written.

    Raises:
        ArgumentError: an unknown format, a path that does not suit it, or missing or unsuitable inputs.
        MissingDependencyError: a package or compiler that the format needs is not installed.
        OutputError: the file exists, or cannot be written.
        ExportError: the model cannot be recorded or expressed, would be written with more numbers than it has, or the
            file does not compute what the model does; nothing is written then.

    Example:
        >>> import tempfile
        >>> from mpochain import MPOLinear
        >>> model = nn.Sequential(MPOLinear(64, 48, max_bond=4), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export(model, f"{folder}/model.pt2", "torch", inputs=torch.randn(2, 64))
        >>> exported.numbers == sum(parameter.numel() for parameter in model.parameters())
        True
    """
    require_module(model)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ArgumentError(
            f"{type(model).__name__} is on the meta device, so it has no numbers to write; load it first"
        )
    chosen, file = require_exportable(path, format, overwrite=overwrite)
    captured = capture(model, inputs)
    with output_errors(file), tempfile.TemporaryDirectory(prefix=".mpochain-export-", dir=file.parent) as folder:
        written = Path(folder) / file.name
        chosen.write(captured, written)
        numbers = _numbers(chosen.tensors(captured, written), captured)
        difference = _difference(captured, chosen, written) if check else None
        return Exported(
            file, chosen.name, captured.inputs, captured.outputs, numbers, _put(Path(folder), file), difference
        )


def require_exportable(
    path: Path | str,
    format: str,  # noqa: A002  # the word for it
    *,
    overwrite: bool = False,
) -> tuple[Format, Path]:
    """Check all of an export but the model, before it is read; return the format and the path.

    Raises:
        ArgumentError: see :func:`export`, as for the other errors.
        MissingDependencyError: a package or compiler is missing.
        OutputError: the file exists, or cannot be written.

    Example:
        >>> require_exportable("model.onnx", "gguf")
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: format 'gguf' is unknown; expected one of onnx, torch, aoti
    """
    chosen = _format_of(format)
    file = _file(path, chosen, overwrite)
    chosen.require_available()
    require_writable(file.parent)
    return chosen, file


def _format_of(name: str) -> Format:
    chosen = FORMATS.get(name) if isinstance(name, str) else None
    if chosen is None:
        raise ArgumentError(f"format {name!r} is unknown; expected one of {', '.join(FORMATS)}")
    return chosen


def _file(path: Path | str, chosen: Format, overwrite: bool) -> Path:
    file = require_path(as_path(path, "path"))
    if file.suffix != chosen.suffix:
        raise ArgumentError(
            f"{file} does not end in {chosen.suffix}, as files of format {chosen.name!r} do; name it "
            f"{file.with_suffix(chosen.suffix).name if file.name else 'model' + chosen.suffix}"
        )
    if file.is_dir():
        raise OutputError(f"{file} is a folder; name a file")
    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists and would be overwritten; name another file, or add overwrite=True")
    return file


def _numbers(tensors: dict[str, int], captured: Captured) -> int:
    """The numbers in a file, which holds no others than the model.

    Raises:
        ExportError: it holds a tensor that the model does not have.
    """
    own = {name: size for name, size in tensors.items() if captured.tensors.get(name) == size}
    others = {name: size for name, size in tensors.items() if name not in own and size > _CONSTANT}
    known = list(captured.constants)
    for name, size in list(others.items()):
        if size in known:
            known.remove(size)
            del others[name]
    if others:
        largest = max(others, key=lambda name: others[name])
        raise ExportError(
            f"the file would hold the tensor {largest!r}, which the model does not have and which was computed from "
            "its parameters, such as a dense matrix; make the layer one of nn.Linear (mpochain.as_linears) or dense "
            "(mpochain.to_dense) first"
        )
    return sum(own.values())


def _difference(captured: Captured, chosen: Format, file: Path) -> float:
    """The largest relative difference of the outputs of a file from those of the model, at other shapes.

    Raises:
        ExportError: outputs that differ by more than rounding.
    """
    run = chosen.runner(file)
    largest = 0.0
    for inputs in captured.sample.others():
        with in_evaluation(captured.run), torch.no_grad():
            expected = captured.run(*inputs)
        shapes = [tuple(tensor.shape) for tensor in inputs]
        try:
            outputs = run(inputs)
        except Exception as error:  # whatever another program raises
            raise ExportError(
                f"the {chosen.name} file cannot be run with inputs of shapes {shapes}: {error}; the model may compute "
                "with sizes in a way that is fixed when it is recorded"
            ) from error
        compared = captured.sample.compared(inputs)
        for name, one, other in zip(captured.outputs, outputs, expected, strict=True):
            one, other = one.cpu(), other.cpu()
            if one.shape != other.shape:
                raise ExportError(
                    f"output {name} of the {chosen.name} file has shape {tuple(one.shape)} for inputs of shapes "
                    f"{shapes}, that of the model {tuple(other.shape)}"
                )
            if compared is not None and compared.shape == other.shape[:2]:
                one, other = one[compared.cpu()], other[compared.cpu()]
            scale = max(float(other.abs().max()), torch.finfo(other.dtype).tiny) if other.numel() else 1.0
            difference = float((one - other).abs().max()) / scale if other.numel() else 0.0
            if not difference <= torch.finfo(other.dtype).eps ** 0.5:
                raise ExportError(
                    f"output {name} of the {chosen.name} file differs from the model by {difference:.2g} of its "
                    f"largest value for inputs of shapes {shapes}; the model may decide by values or sizes, "
                    "which a recorded graph cannot"
                )
            largest = max(largest, difference)
    return largest


def _put(folder: Path, file: Path) -> int:
    """Move the files of a folder beside each other into their place, the named one last, and return their bytes."""
    written = sorted(folder.iterdir(), key=lambda part: part.name == file.name)
    size = 0
    for part in written:
        size += part.stat().st_size
        part.replace(file.with_name(part.name))
    sync_folder(file.parent)
    return size
