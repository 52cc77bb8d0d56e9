"""Options of a command from models of settings: name, type, default and help come from each field."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tiling.core.errors import ConfigError
from tiling.core.settings import checked

Settings = dict[str, Any]
"""Those settings that options gave, by their names; a section's are a dict of their own."""
Command = Callable[..., None]
Model = TypeVar("Model", bound=BaseModel)

FURTHER = "Further settings"
"""The help panel of settings that are rarely given."""
_SIMPLE = (bool, int, float, Path)


class _Field(NamedTuple):
    place: tuple[str, ...]
    """The names that lead to the setting, a section's first."""
    info: FieldInfo


def options_of(
    *models: type[BaseModel],
    common: Collection[str] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    without: Collection[str] = (),
) -> Callable[[Command], Command]:
    """Give a command an option for each setting of some models; what is given reaches its parameter `settings`.

    An option takes several values, repeated or with commas between, where its field is a tuple. A setting whose
    name the command has among its own parameters gets no option: the command sees to it.

    Args:
        models: The models; no two have a setting of one name. A section's settings are called `section_setting`.
        common: Options shown first in the help, the others in a panel of their own; None: all.
        names: What options are called whose name is not the setting's.
        without: Settings that get no option.

    Returns:
        The decorator of the command.
    """
    fields = {names.get(name, name): field for model in models for name, field in _fields(model) if name not in without}

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command).parameters.values()
        ]
        asked = {name: field for name, field in fields.items() if name not in hints}
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None,
                annotation=_option(name, field.info, None if common is None or name in common else FURTHER),
            )
            for name, field in asked.items()
        ]  # fmt: skip
        place = next(number for number, parameter in enumerate(own) if parameter.name == "settings")
        signature = inspect.Signature([*own[:place], *options, *own[place + 1 :]])

        @wraps(command)
        def with_settings(**given: Any) -> None:
            settings = _gathered(asked, given)
            command(**{name: value for name, value in given.items() if name not in asked}, settings=settings)

        with_settings.__signature__ = signature  # type: ignore[attr-defined]
        return with_settings

    return decorate


def settings_of(model: type[Model], settings: Settings, where: str) -> Model:
    """The checked settings of one model among those that were given. Raises ConfigError naming `where` and the key."""
    return checked(model, given_of(model, settings), where)


def given_of(model: type[BaseModel], settings: Settings) -> Settings:
    """Those of the given settings that belong to the model."""
    return {name: value for name, value in settings.items() if name in model.model_fields}


def listed(text: str | None, option: str) -> list[str] | None:
    """The parts of a text between commas, None for None. Raises ConfigError naming the option for an empty one."""
    parts = None if text is None else [part.strip() for part in text.split(",")]
    if parts is not None and "" in parts:
        raise ConfigError(option, f"{text!r} has nothing between two commas or at an end", "name each part")
    return parts


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, _Field]]:
    for name, info in model.model_fields.items():
        section = _kind(info.annotation)
        if isinstance(section, type) and issubclass(section, BaseModel):
            for inner, field in _fields(section):
                yield f"{name}_{inner}", _Field((name, *field.place), field.info)
        else:
            yield name, _Field((name,), info)


def _kind(annotation: Any) -> Any:
    """The type of a field without None and what it is annotated with."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _kind(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _option(name: str, info: FieldInfo, panel: str | None) -> Any:
    """The annotated type of the option for a field."""
    kind = _kind(info.annotation)
    several = get_origin(kind) is tuple
    value = _kind(get_args(kind)[0]) if several else kind
    flag = f"--{name.replace('_', '-')}"
    kwargs: dict[str, Any] = {"help": _help(info), "show_default": _shown(info.default), "rich_help_panel": panel}
    if get_origin(value) is Literal:
        kwargs["metavar"] = "|".join(map(str, get_args(value)))
    if kind is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", **kwargs)]
    taken: Any = list[str] if several else kind if kind in _SIMPLE else str
    return Annotated[taken | None, typer.Option(flag, **kwargs)]


def _help(info: FieldInfo) -> str:
    """A field's description, in which None is what stands without the option."""
    text = " ".join((info.description or "").split())
    return re.sub(r"; None: ", "; default: ", re.sub(r"(?<!; )\bNone: ", "Default: ", text))


def _shown(default: object) -> str | bool:
    if default is None or default is False or default == ():
        return False
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _gathered(fields: Mapping[str, _Field], given: Mapping[str, Any]) -> Settings:
    """The settings that were given, those of a section in a dict of their own."""
    settings: Settings = {}
    for name, field in fields.items():
        value = given.get(name)
        if value is None or value == [] or value == ():
            continue
        if isinstance(value, list | tuple):
            flag = f"--{name.replace('_', '-')}"
            value = [part for text in value for part in listed(text, flag) or ()]
        section = settings
        for key in field.place[:-1]:
            section = section.setdefault(key, {})
        section[field.place[-1]] = value
    return settings
