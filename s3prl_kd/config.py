"""Configurations: a YAML file read into a dataclass, every key known."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from s3prl_kd.errors import UserError

T = TypeVar("T")


def load_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read ``path`` into the dataclass ``cls``; absent keys keep its defaults.

    Args:
        cls: a dataclass, whose fields may be dataclasses, ``X | None``, lists or dicts.
        path: a YAML file.
        overrides: ``"key=value"`` or ``"section.key=value"``, the value in YAML, applied on top.

    Raises:
        UserError: no such file, not YAML, an unknown key or a value of another type.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(
            f"{path}: cannot read this configuration ({error.strerror}); "
            f"there are: {', '.join(known_names(path.parent)) or 'none'}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"{override!r}: expected key=value")
        target = content
        *sections, last = key.split(".")
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"{override!r}: {section} is not a section")
        target[last] = yaml.safe_load(value)
    return build(cls, content, where=str(path))


def known_names(directory: str | Path) -> list[str]:
    """Names of the YAML configurations in ``directory``, without their suffix."""
    return sorted(file.stem for file in Path(directory).glob("*.yaml"))


def resolve_config(directory: str | Path, name: str, what: str) -> Path:
    """A configuration by name (``directory/name.yaml``) or by path.

    Raises:
        UserError: neither exists; the message lists the names that do.
    """
    for candidate in (Path(directory) / f"{name}.yaml", Path(name)):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"unknown {what} {name!r}; there are: {', '.join(known_names(directory)) or 'none'} "
        f"(in {directory}), or give the path of a YAML file"
    )


def build(cls: type[T], content: dict[str, Any], where: str) -> T:
    """Make the dataclass ``cls`` from a mapping, refusing what it does not know."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(content) - set(fields))
    if unknown:
        raise UserError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; known: {', '.join(fields)}"
        )
    values = {
        name: _convert(hints[name], value, f"{where}: {name}") for name, value in content.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: missing key {', '.join(map(repr, missing))}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        failures = []
        for option in options:
            if option is type(None):
                continue
            try:
                return _convert(option, value, where)
            except UserError as error:
                failures.append(error)
        raise failures[0]
    if origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        choices = ", ".join(map(str, typing.get_args(hint)))
        raise UserError(f"{where}: {value!r} is not one of {choices}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected keys and values, found {value!r}")
        return build(hint, value, where)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, found {value!r}")
        inner = typing.get_args(hint)[0]
        return origin(_convert(inner, item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected keys and values, found {value!r}")
        inner = typing.get_args(hint)[1]
        return {key: _convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if hint is float:
        # YAML 1.1 reads "1e-4" as a string.
        try:
            if not isinstance(value, bool):
                return float(value)
        except (TypeError, ValueError):
            pass
        raise UserError(f"{where}: expected a number, found {value!r}")
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
