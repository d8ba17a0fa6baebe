"""Where a plan runs, and what that machine can do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mpochain.errors import SpecError

__all__ = ["DEFAULT_SETTING", "Machine", "Setting", "default_machine"]

_ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Setting:
    """The circumstances that times depend on beside shapes.

    Attributes:
        dtype: element type of the products: ``"float32"``, ``"float64"``, ``"bfloat16"`` or ``"float16"``.
        device: where they run, as ``"cpu"``, or the name of an accelerator.
        threads: threads of the products; 0 for whatever the library is set to.

    Raises:
        SpecError: an element type that is none of these.

    Example:
        >>> str(Setting("bfloat16", threads=2))
        'bfloat16 on cpu, 2 threads'
    """

    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _ELEMENT_BYTES:
            raise SpecError(f"a plan is for one of {', '.join(_ELEMENT_BYTES)}, got {self.dtype!r}")

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return _ELEMENT_BYTES[self.dtype]

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return f"{self.dtype} on {self.device}{threads}"


DEFAULT_SETTING = Setting()


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a machine for one element type.

    The defaults are those of a two-core AVX-512 machine in float32; ratios between them decide, not their size.

    Attributes:
        gemm_rate: FLOPs per second of one large matrix product.
        half_side: a side of this size halves the rate of a product.
        cache_bytes: what stays in the cache close to the cores.
        cache_bandwidth: bytes per second, read and written, within that cache.
        bandwidth: the same beyond it.
        transpose_rate: elements per second of a copy that exchanges two axes.
        call_seconds: fixed cost of one product with its reshapes.
        element_bytes: size of one element.
        measured: whether the constants were measured here.
    """

    gemm_rate: float = 1.9e11
    half_side: float = 8.0
    cache_bytes: int = 1 << 22
    cache_bandwidth: float = 1.5e11
    bandwidth: float = 3e10
    transpose_rate: float = 8e8
    call_seconds: float = 8e-6
    element_bytes: int = 4
    measured: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> Machine:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: a missing or unknown constant, or one that is not a positive number.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or set(record) != names:
            raise ValueError(f"a machine has exactly the constants {sorted(names)}")
        for field in fields(cls):
            value, kind = record[field.name], type(field.default)
            right = isinstance(value, kind) and isinstance(value, bool) is (kind is bool)
            if not right or not (kind is bool or 0 < value < 1e30):
                raise ValueError(f"the constant {field.name} must be a positive {kind.__name__}, got {value!r}")
        return cls(**record)


def default_machine(setting: Setting) -> Machine:
    """The constants taken where none were measured."""
    return Machine(element_bytes=setting.element_bytes)
