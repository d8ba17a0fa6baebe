"""Mutations of JSON values, tensors and bytes, each drawn from a random generator."""

from __future__ import annotations

import copy
import json

import torch
from safetensors.torch import save

# Values that readers are prone to take for others, or to trip over.
_HOSTILE = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    255,
    1 << 16,
    1 << 31,
    (1 << 31) - 1,
    1 << 40,
    1 << 63,
    -(1 << 63),
    10**30,
    0.5,
    -1.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "a",
    "0",
    "nan",
    "é\u202e\x1b[31m",
    "\x00",
    "../x",
    "/dev/zero",
    "hf-hub:org/name",
    "org/name",
    "x" * 5000,
    [],
    [0],
    [[]],
    [1] * 300,
    {},
    {"": 1},
    {"kind": "chain"},
    {"__float__": "Infinity"},
)
_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)

# A null byte, invalid UTF-8, line ends, a byte order mark, an escape sequence, a long number, and deep nesting.
_INSERTED = (b"\x00", b"\xff", b"\r", b"\t", b"\xef\xbb\xbf", b"\x1b[31m", b"9" * 40, b"[" * 3000)


def paths_of(data, path=()):
    """Paths of all values within nested JSON, the root last."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from paths_of(value, (*path, key))
    yield path


def at(data, path):
    """The value at a path."""
    for key in path:
        data = data[key]
    return data


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def mutated_json(random, data):
    """A copy of nested JSON with one to three changes, and the keys of the places that were changed."""
    data = copy.deepcopy(data)
    changed = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        path = random.choice(list(paths_of(data))[:-1] or [()])
        if not path:
            return random.choice(_HOSTILE), changed
        changed += [str(key) for key in path]
        owner, key = at(data, path[:-1]), path[-1]
        value = owner[key]
        kind = random.randrange(10)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            name = random.choice((str(key) + "x", str(key)[:-1], str(key).upper(), "\x1b[1m", "auto_map", "extra"))
            owner[name] = owner.pop(key)
            changed.append(name)
        elif kind == 2 and isinstance(owner, list):
            owner.insert(random.randrange(len(owner) + 1), copy.deepcopy(random.choice((value, *_HOSTILE))))
        elif kind == 3 and isinstance(value, int) and not isinstance(value, bool):
            owner[key] = random.choice((value - 1, value + 1, -value, value * 2, value * 1000))
        elif kind == 4 and isinstance(value, str):
            left = value[: random.randrange(len(value) + 1)]
            inserted = left + random.choice("\x00\n/.é ") + value[len(left) :]
            owner[key] = random.choice((inserted, left, value * 3))
        elif kind == 5:
            owner[key] = copy.deepcopy(at(data, random.choice(list(paths_of(data)))))
        elif kind == 6:
            owner[key] = random.choice((str(value), [value], {"value": value}, json.dumps(value)))
        elif kind == 7 and random.random() < 0.1:
            owner[key] = _nested(random.choice((10, 100)))
        else:
            owner[key] = copy.deepcopy(random.choice(_HOSTILE))
    return data, changed


def mutated_bytes(random, data):
    """A copy of bytes with flipped, removed, repeated or inserted parts."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(data) + 1)
        kind = random.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + random.randrange(1, 20)]
        elif kind == 3:
            data[place:place] = data[place : place + random.randrange(1, 60)]
        elif kind == 4:
            data[place:place] = random.choice(_INSERTED)
        elif data:
            data[place % len(data)] = random.randrange(256)
    return bytes(data)


def mutated_tensors(random, tensors):
    """A copy of named tensors with one to two changes, and the names of those that were changed."""
    tensors = {name: value.clone() for name, value in tensors.items()}
    changed = []
    for _ in range(random.choice((1, 1, 2))):
        if not tensors:
            break
        name = random.choice(sorted(tensors))
        value = tensors[name]
        changed.append(name)
        kind = random.randrange(9)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            other = random.choice((name + "x", name.upper(), "extra", "0.\x1b[31m", name.rpartition(".")[0]))
            tensors[other] = tensors.pop(name)
            changed.append(other)
        elif kind == 2:
            tensors["extra"] = value.clone()
            changed.append("extra")
        elif kind == 3:
            tensors[name] = random.choice(
                (value.reshape(-1), value[None], value.transpose(0, -1).contiguous() if value.ndim else value[None])
            )
        elif kind == 4:
            tensors[name] = value.new_zeros(random.choice(((), (0,), (3,), (2, 2), (1, 1, 1, 1), (200,))))
        elif kind in (5, 6):
            real = value.real if value.is_complex() else value
            tensors[name] = real.to(random.choice(_DTYPES))
        elif value.numel() and not value.is_complex() and value.dtype.itemsize > 1:
            flat = value.reshape(-1)
            place = random.randrange(len(flat))
            floats, integers = (float("nan"), float("inf"), 1e30, 0.0), (-1, 1000, 0, 2**31 - 1)
            extremes = floats if value.is_floating_point() else integers
            flat[place] = torch.tensor(random.choice(extremes), dtype=torch.float64).to(value.dtype)
        else:
            tensors[name] = tensors[random.choice(sorted(tensors))].clone()
    return tensors, changed


def mutated_safetensors(random, data):
    """A safetensors file with a changed header that has the right length."""
    size = int.from_bytes(data[:8], "little")
    header, _ = mutated_json(random, json.loads(data[8 : 8 + size]))
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + data[8 + size :]


def written_tensors(tensors, metadata=None):
    """A safetensors file; tensors that share memory are stored apart."""
    return save({name: value.clone().contiguous() for name, value in tensors.items()}, metadata=metadata)
