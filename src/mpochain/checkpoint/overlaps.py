"""Parameters that share memory in part, which a checkpoint cannot hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mpochain.errors import ArgumentError
from mpochain.surgery.tying import address_of, view_of

__all__ = ["require_no_overlaps"]


def require_no_overlaps(model: nn.Module) -> None:
    """Refuse parameters that are different views of the same memory: loaded, they would no longer share it.

    Raises:
        ArgumentError: naming two such parameters.

    Example:
        >>> require_no_overlaps(nn.Linear(2, 2))
    """
    for name, other in _overlaps(dict(model.named_parameters())):
        raise ArgumentError(
            f"{name} and {other} share memory in part, which a checkpoint does not hold: after loading they would "
            "train apart; make one of them a copy, with .clone()"
        )


def _overlaps(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Pairs of names of tensors that use the same memory, but are not the same view of it."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, value in tensors.items():
        if address_of(value) is not None:
            last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            start = value.storage_offset() * value.element_size()
            end = start + (last + 1) * value.element_size()
            by_storage.setdefault(value.untyped_storage().data_ptr(), []).append((int(start), int(end), name))
    pairs = []
    for spans in by_storage.values():
        spans.sort()
        for k, (_, end, name) in enumerate(spans):
            for start, _, other in spans[k + 1 :]:
                if start >= end:
                    break
                if view_of(tensors[name]) != view_of(tensors[other]):
                    pairs.append((name, other))
    return pairs
