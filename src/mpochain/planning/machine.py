"""Machine constants of the cost model: speeds of products and copies, and thresholds fitted to one processor."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from mpochain.errors import ArgumentError

__all__ = ["DEFAULT_SETTING", "Machine", "Setting", "default_machine"]

_ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Setting:
    """Element type, device and number of threads, on which times depend besides shapes.

    Attributes:
        dtype: element type of the products: ``"float32"``, ``"float64"``, ``"bfloat16"`` or ``"float16"``.
        device: device of the products: ``"cpu"``, or the name of an accelerator.
        threads: number of threads; 0 for the library's own setting.

    Raises:
        ArgumentError: another element type.

    Example:
        >>> str(Setting("bfloat16", threads=2))
        'bfloat16 on cpu, 2 threads'
    """

    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _ELEMENT_BYTES:
            raise ArgumentError(f"dtype must be one of {', '.join(_ELEMENT_BYTES)}, got {self.dtype!r}")

    @property
    def element_bytes(self) -> int:
        """Size of one element in bytes."""
        return _ELEMENT_BYTES[self.dtype]

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return f"{self.dtype} on {self.device}{threads}"


DEFAULT_SETTING = Setting()


def _fitted(default: Any) -> Any:
    """A constant that :func:`mpochain.execution.measure_machine` does not measure, and that records may omit."""
    return field(default=default, metadata={"fitted": True})


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a machine for one element type.

    The defaults are those of a two-core AVX-512 machine in float32; plans depend on ratios of the constants, not on
    their absolute size. The constants up to ``call_seconds`` can be measured, except ``cache_bytes``
    (:func:`mpochain.execution.measure_machine`). Constants from ``smallest_tile`` on were fitted by hand to that
    processor; to change one for another processor: ``dataclasses.replace(machine, smallest_tile=64)``.

    Attributes:
        gemm_rate: FLOPs per second of one large matrix product.
        half_side: side length at which the rate of a product is halved.
        cache_bytes: size of the cache close to the processor cores.
        cache_bandwidth: bytes per second, read and written, within that cache.
        bandwidth: bytes per second, read and written, outside of that cache.
        transpose_rate: elements per second of a copy that exchanges two axes.
        call_seconds: fixed cost of one product with its reshapes.
        element_bytes: size of one element.
        measured: whether the constants were measured on this machine.
        scatter: how far apart the times of one large product were when ``gemm_rate`` was measured: (longest - shortest)
            / shortest. On a machine with other work it is large.
        smallest_tile: smallest number of rows per tile of a sweep.
        largest_tile_bytes: largest size of the states of one tile in any plan, so that a training step needs at most
            64 MiB of its own.
        small_states_bytes: largest size of the states of a sweep, without its input, for which autograd saves them in
            training by default.
        largest_states_bytes: the same limit if the last step is narrow, since its states are costly to recompute, if
            every step is a single product of all rows, such as for low rank, and in measured plans. The backward pass
            needs about four times as much memory, which should stay within 64 MiB.
        narrow_columns: number of columns below which a step is narrow: its small products fill a vector unit only in
            part.
        panel_rows: number of rows from which a matrix is not rebuilt in panels, since the products outweigh the memory
            saved.
        few_rows: largest number of rows for which a product and a separate addition of the bias are faster than the
            fused call, whose set-up costs 1 µs more.
        narrow_entry_seconds: time per matrix entry of a narrow product, which takes about as long as a product of 16
            columns.
        multiply_add_seconds: time per multiply-add of a large product.
        moved_element_seconds: time to move one element of a state, in order to batch narrow products into one.
        batching_seconds: time of the extra calls that batch narrow products into one.
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
    scatter: float = _fitted(1e-3)
    smallest_tile: int = _fitted(16)
    largest_tile_bytes: int = _fitted(1 << 24)
    small_states_bytes: int = _fitted(1 << 19)
    largest_states_bytes: int = _fitted(1 << 24)
    narrow_columns: int = _fitted(16)
    panel_rows: int = _fitted(1024)
    few_rows: int = _fitted(16)
    narrow_entry_seconds: float = _fitted(2.9e-10)
    multiply_add_seconds: float = _fitted(1.05e-11)
    moved_element_seconds: float = _fitted(1.4e-9)
    batching_seconds: float = _fitted(2.5e-5)

    def as_dict(self) -> dict[str, Any]:
        """The constants by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> Machine:
        """The inverse of :meth:`as_dict`; fitted constants missing from the record get their defaults.

        Raises:
            ValueError: a measured constant is missing, or a constant is unknown or not a positive number.
        """
        names = {constant.name for constant in fields(cls)}
        required = {constant.name for constant in fields(cls) if "fitted" not in constant.metadata}
        if not isinstance(record, dict) or not required <= record.keys() <= names:
            raise ValueError(f"expected the constants {sorted(names)}, of which only fitted ones may be missing")
        for constant in fields(cls):
            assert constant.default is not MISSING
            value, kind = record.get(constant.name, constant.default), type(constant.default)
            is_of_kind = isinstance(value, kind) and isinstance(value, bool) is (kind is bool)
            if not is_of_kind or not (kind is bool or 0 < value < 1e30):
                raise ValueError(f"the constant {constant.name} must be a positive {kind.__name__}, got {value!r}")
        return cls(**record)


def default_machine(setting: Setting) -> Machine:
    """The built-in constants, with the element size of the setting.

    Raises:
        ArgumentError: ``setting`` is not a :class:`Setting`.
    """
    if not isinstance(setting, Setting):
        raise ArgumentError(f"setting must be a Setting, got {type(setting).__name__}")
    return Machine(element_bytes=setting.element_bytes)
