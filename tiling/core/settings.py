"""Settings from files and options, checked: a bad one is refused with its name. Knows no settings itself."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tiling.core.errors import ConfigError, shortened

Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], values: object, where: object) -> Model:
    """Settings validated by a model. Raises ConfigError naming `where`, the key, and what is wrong with its value."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place, value = first["loc"], first["input"]
        section = _section(model, place)
        if first["type"] in section.model_fields:  # settings that do not fit together: typed by one of them
            place, value = (
                (*place, first["type"]),
                value.get(first["type"], section.model_fields[first["type"]].default),
            )
        key = f"{where}: {shortened('.'.join(map(str, place)))}"
        if first["type"] == "extra_forbidden":
            known = ", ".join(_section(model, place[:-1]).model_fields)
            raise ConfigError(key, "is not a setting", f"the settings are {known}") from None
        if first["type"] == "missing":
            raise ConfigError(key, "is missing", "set it") from None
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        raise ConfigError(key, f"{_shown(value)} is refused, {reason}", "correct the value") from None


def first_fault(error: ValidationError) -> str:
    """Where a record of somebody else's is wrong, and how, on one short line without its values."""
    first = error.errors(include_input=False)[0]
    return (".".join(map(str, first["loc"])) + ": " + first["msg"].removeprefix("Value error, "))[:200]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, {} for an empty one. Raises ConfigError for what is no mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is a SafeLoader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no such date, not UTF-8
        problem = getattr(error, "strerror", None) or getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(path, f"cannot be read as YAML ({problem})", "correct the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(path, "is not a list of settings", "write one 'key: value' a line")
    return {str(key): value for key, value in values.items()}


class _Loader(yaml.SafeLoader):
    """YAML as the safe loader reads it, less what nobody means: a key that is given twice, and the character NUL."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!a} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if "\0" in str(value):
            raise yaml.constructor.ConstructorError(None, None, "a text holds the character NUL", node.start_mark)
        return value


def _shown(value: object) -> str:
    """A value as Python writes it, cut short: aliases in YAML make values of any size from a few bytes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 200, 200
    try:
        return short.repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"


def load_settings(
    model: type[Model], path: Path | None, overrides: Mapping[str, object] | None, where: object
) -> Model:
    """The settings of a YAML file, with the overrides that are not None in their place.

    Args:
        model: The model of the settings.
        path: The YAML file; None: the defaults.
        overrides: Values by key; those that are None are passed over.
        where: What errors in the overrides are said of.

    Returns:
        The checked settings.

    Raises:
        ConfigError: For an unknown key or a bad value, naming the file, or `where`, and the key.
    """
    values = read_settings(path) if path else {}
    checked(model, values, path)
    return checked(model, values | {k: v for k, v in (overrides or {}).items() if v is not None}, where)


def _section(model: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """The settings that a key belongs to: `model`, or the nested ones that the place leads to."""
    section = model
    for name in place:
        field = section.model_fields.get(str(name))
        if field is not None:
            kinds = (field.annotation, *get_args(field.annotation))  # also a section that may be None
            section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
    return section
