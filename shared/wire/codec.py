"""Messages as msgpack: `[version, tag, fields...]`, checked field by field against the dataclass on the way in.

Why not trust the bytes: msgpack runs no code, but a wrong type would surface far from the edge, inside a policy.
Sequences become tuples, enums their values; missing, surplus or ill-typed fields raise BadFrame.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin

import msgpack

from shared.errors import BadFrame
from shared.wire import messages

VERSION = 2  # of all messages: raised whenever the fields of one change
MAX_FRAME_BYTES = 8 << 20

type_of_tag: dict[str, type[Any]] = {cls.__name__: cls for cls in get_args(messages.Message)}


def encode(message: messages.Message) -> bytes:
    return pack(message)


def decode(frame: bytes) -> messages.Message:
    """Raises BadFrame for anything that `encode` of this version would not produce."""
    message: messages.Message = unpack(frame, type_of_tag)
    return message


def pack(record: Any) -> bytes:
    """Any dataclass whose fields are of the kinds that messages have."""
    packed: bytes = msgpack.packb([VERSION, type(record).__name__, *_values(record)], use_bin_type=True)
    if len(packed) > MAX_FRAME_BYTES:
        raise BadFrame(f"{type(record).__name__} of {len(packed)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return packed


def unpack(frame: bytes, known: Mapping[str, type[Any]]) -> Any:
    """The record that `pack` made, whose type is known by that name; raises BadFrame for anything else."""
    if len(frame) > MAX_FRAME_BYTES:
        raise BadFrame(f"frame of {len(frame)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    try:
        parts = msgpack.unpackb(frame, use_list=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise BadFrame(f"no msgpack: {error}") from error
    if not isinstance(parts, tuple) or len(parts) < 2 or parts[0] != VERSION or parts[1] not in known:
        raise BadFrame(f"unknown version or tag: {repr(parts)[:80]}")
    return _reader(known[parts[1]])(parts[2:])


def _values(record: Any) -> list[Any]:
    return [_plain(getattr(record, f.name)) for f in fields(record)]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return _values(value)
    if isinstance(value, tuple) and value and not isinstance(value[0], int | float | str | bytes):
        return [_plain(item) for item in value]
    return value


_readers: dict[Any, Callable[[Any], Any]] = {}


def _reader(hint: Any) -> Callable[[Any], Any]:
    """The checking reader of a type hint, built once."""
    if hint not in _readers:
        _readers[hint] = _build_reader(hint)
    return _readers[hint]


def _build_reader(hint: Any) -> Callable[[Any], Any]:
    if hasattr(hint, "__supertype__"):  # NewType
        return _reader(hint.__supertype__)
    if get_origin(hint) in (Union, types.UnionType):
        inner = _reader(next(arg for arg in get_args(hint) if arg is not type(None)))
        return lambda value: None if value is None else inner(value)
    if get_origin(hint) is tuple:
        return _tuple_reader(get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_reader(hint)
    if is_dataclass(hint):
        return _record_reader(typing.cast(type[Any], hint))
    return _scalar_reader(hint)


def _tuple_reader(item_hint: Any) -> Callable[[Any], Any]:
    item = _reader(item_hint)

    def read(value: Any) -> Any:
        if type(value) is not tuple:
            raise BadFrame(f"expected a sequence, got {type(value).__name__}")
        return tuple(map(item, value))

    return read


def _enum_reader(hint: type[Enum]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            return hint(value)
        except ValueError as error:
            raise BadFrame(str(error)) from error

    return read


def _record_reader(cls: type[Any]) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    readers = [_reader(hints[name]) for name in names]

    def read(values: Any) -> Any:
        if type(values) is not tuple or len(values) != len(names):
            raise BadFrame(f"{cls.__name__} needs {len(names)} fields")
        try:
            return cls(**{name: one(value) for name, one, value in zip(names, readers, values, strict=True)})
        except BadFrame as error:
            raise BadFrame(f"{cls.__name__}: {error}") from error

    return read


def _scalar_reader(hint: type[Any]) -> Callable[[Any], Any]:
    accepted = (int, float) if hint is float else (hint,)

    def read(value: Any) -> Any:
        if type(value) not in accepted:
            raise BadFrame(f"expected {hint.__name__}, got {type(value).__name__}")
        return hint(value)

    return read
