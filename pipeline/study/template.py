"""A first study.yaml with every setting, its default and what it means, and the JSON schema that editors check it by.

Both are written from the settings' models, so that they say what this version takes.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.study.config import StudyConfig
from tiling.core.errors import OutputError
from tiling.core.files import write_file

STUDY_YAML, SCHEMA = "study.yaml", "study.schema.json"
_WIDTH = 110
_GIVEN = {"manifest": "slides.csv", "out": "results"}


def write_template(folder: Path) -> tuple[Path, Path]:
    """Write study.yaml and study.schema.json into a folder, which is made; returns both paths.

    Raises OutputError, also if one of them is there already.
    """
    study, schema = folder / STUDY_YAML, folder / SCHEMA
    for path in (study, schema):
        if path.exists():
            raise OutputError(path, "exists already", "remove it, or pass another folder")
    write_file(schema, study_schema())
    write_file(study, study_template())
    return study, schema


def study_schema() -> str:
    """The JSON schema of study.yaml."""
    schema = StudyConfig.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema, indent=1) + "\n"


def study_template() -> str:
    """A study.yaml with all defaults: loading it gives the settings of one that names manifest and out alone."""
    head = [
        f"# yaml-language-server: $schema={SCHEMA}",
        "# A study: specslide run study.yaml. Every setting is here with its default; those left out keep it.",
        "# Paths are relative to this file, but for those within sections, which are to where the study is run.",
        "# What is called None below is written null.",
    ]
    return "\n".join([*head, *_section(StudyConfig, "")]) + "\n"


def _section(model: type[BaseModel], indent: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        section = _model_of(info)
        if model is StudyConfig:
            yield ""
        yield from _comment(info.description or "", indent)
        if section is None:
            yield f"{indent}{name}: {_text(_default(name, info, indent))}"
        elif _default(name, info, indent) is None:  # a section that is off: what it takes is shown, and left out
            yield f"{indent}{name}: null"
            yield f"{indent}# {name}:"
            yield from (f"{indent}#   {line}".rstrip() for line in _section(section, ""))
        else:
            yield f"{indent}{name}:"
            yield from _section(section, indent + "  ")


def _model_of(info: FieldInfo) -> type[BaseModel] | None:
    """The settings that a field holds."""
    kinds = (info.annotation, *get_args(info.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(name: str, info: FieldInfo, indent: str) -> Any:
    return _GIVEN[name] if not indent and name in _GIVEN else info.get_default(call_default_factory=True)


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent), break_long_words=False):
        yield f"{indent}# {line}"


def _text(value: Any) -> str:
    """A value as YAML writes it in one line."""
    plain = json.loads(json.dumps(value))
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
