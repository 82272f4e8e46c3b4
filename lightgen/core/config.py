"""Configurations: frozen dataclasses to and from plain JSON values, their digest, and the environment."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightgen.core.errors import UserError

_T = typing.TypeVar("_T")


def config_to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401  (any dataclass)
    """JSON-able tree of a dataclass: nested dataclasses as objects, tuples as lists, paths as strings.

    Raises:
        UserError: a number is not finite.
    """
    assert dataclasses.is_dataclass(config) and not isinstance(config, type), config
    return _plain(config, type(config).__name__)


def config_from_dict(cls: type[_T], record: Mapping[str, Any]) -> _T:
    """Dataclass of a tree that `config_to_dict` wrote; nothing is guessed and nothing is ignored.

    Raises:
        UserError: a key is missing or unknown, or a value is not of its field's type.
    """
    return _build(cls, record, cls.__name__)


def digest(value: Any) -> str:  # noqa: ANN401  (any JSON-able value)
    """SHA-256 [64 hex digits] of a JSON value or dataclass; equal values (2 and 2.0 too) have equal ones."""
    text = json.dumps(_canonical(_plain(value, "value")), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Text `key OLD, now NEW` on the first dotted key in which two trees differ, or an empty string."""
    return next((f"config.{key} {was}, now {now}" for key, was, now in differences(old, new)), "")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(Dotted key, old value, new value) in short of each leaf in which two trees differ."""
    before, after = (dict(_leaves(_canonical(_plain(tree, "config")), "")) for tree in (old, new))
    for key in dict.fromkeys((*after, *before)):
        if before.get(key) != after.get(key) or (key in before) != (key in after):
            yield key, _short(before.get(key)), _short(after.get(key))


def set_environment(name: str, value: str) -> None:
    """Give an environment variable a value, unless it has one; for libraries that read it when they load."""
    os.environ.setdefault(name, value)


def environment(name: str) -> str | None:
    """Value of an environment variable, or None where it is unset or empty."""
    return os.environ.get(name) or None


def environment_variables() -> dict[str, str]:
    """All environment variables, to hand on to another process."""
    return dict(os.environ)


def suggestion(name: str, allowed: typing.Iterable[str]) -> str:
    """Text `, did you mean 'x'?` where a name is close to an allowed one, else an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _plain(value: Any, where: str) -> Any:  # noqa: ANN401
    """Tree of dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(vars(value)[name], f"{where}.{name}") for name in _field_names(type(value))}
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), f"{where}: keys must be strings"
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: got {value}, allowed: a finite number")
    assert value is None or isinstance(value, bool | int | float | str), f"{where}: {type(value)} is not JSON"
    return value


def _canonical(value: Any) -> Any:  # noqa: ANN401
    """The tree with whole floats as integers, so that a trip through another JSON writer keeps the digest."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _build(cls: type, record: Any, where: str) -> Any:  # noqa: ANN401
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: got {_short(record)}, allowed: an object")
    fields = _field_names(cls)
    for key in record:
        if key not in fields:
            hint = suggestion(str(key), fields) or f", allowed: {', '.join(fields)}"
            raise UserError(f"{where}: unknown key {key!r}{hint}")
    missing = [name for name in fields if name not in record]
    if missing:
        raise UserError(f"{where}: missing key {', '.join(map(repr, missing))}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], record[name], f"{where}.{name}") for name in fields})


def _value(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """The value as the annotation wants it: lists as tuples, strings as paths, objects as dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        return _value(arguments[0], value, where)
    if _is_config(hint):
        return _build(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is typing.Literal:
        if any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            return value
        raise UserError(f"{where}: got {_short(value)}, allowed: {', '.join(map(repr, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (arguments[0],) * len(value) if arguments[1:] == (Ellipsis,) else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
    elif origin is list and isinstance(value, list):
        return [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif hint in (bool, int, str, types.NoneType) and type(value) is hint:
        return value
    raise UserError(f"{where}: got {_short(value)}, allowed: {_name(hint)}")


def _union(members: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
    """The value as the one member that it fits; of several dataclasses, the one with exactly these keys."""
    if len(members) == 2 and types.NoneType in members and value is not None:
        return _value(next(member for member in members if member is not types.NoneType), value, where)
    if isinstance(value, Mapping):
        same = [each for each in members if _is_config(each) and set(_field_names(each)) == set(value)]
        if len(same) == 1:
            return _build(same[0], value, where)
    else:
        for member in sorted(members, key=lambda each: each is not type(value)):
            with contextlib.suppress(UserError):
                return _value(member, value, where)
    raise UserError(f"{where}: got {_short(value)}, allowed: one of {', '.join(map(_name, members))}")


def _is_config(hint: Any) -> bool:  # noqa: ANN401
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _name(hint: Any) -> str:  # noqa: ANN401
    return hint.__name__ if type(hint) is type else str(hint)


def _short(value: Any) -> str:  # noqa: ANN401
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
