"""Generates the JSON schema of run files, with which editors complete and check the options of installed components.

Plain options come from the pydantic models that also validate run files. Options that hold components refer to a
definition with all components of that kind. A file that satisfies the schema may still be refused for mistakes that a
schema cannot express, such as two options that exclude each other or a label given twice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fixedpoint.config.models import model_of
from fixedpoint.config.runfile import RunFile
from fixedpoint.core.foreign import guarded
from fixedpoint.core.options import Options, option_types
from fixedpoint.core.termination import Termination
from fixedpoint.registry import KINDS, Kind, registry
from fixedpoint.registry.nesting import Choices, nested

__all__ = ["run_file_schema"]

Schema = dict[str, Any]


def run_file_schema() -> Schema:
    """Return the schema (JSON Schema 2020-12) of a run file, with every installed component that can be used."""
    properties = _properties(RunFile)
    for kind in ("task", "solver", "gradient"):
        properties[f"{kind}s"] |= {"type": "array", "items": _reference(kind, labelled=True)}
    properties["tasks"]["minItems"] = properties["solvers"]["minItems"] = 1
    properties["executor"] |= _reference("executor")
    properties["termination"] |= _options(Termination)
    properties["expect"] |= {"type": "object", "additionalProperties": {"type": "number"}}
    properties["seeds"] |= {"minItems": 1, "uniqueItems": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fixedpoint run file",
        "type": "object",
        "properties": properties,
        # The tasks and solvers may come from the file that this one extends.
        "anyOf": [{"required": ["tasks", "solvers"]}, {"required": ["extends"]}],
        "additionalProperties": False,
        "$defs": {kind: _components(kind, labelled=False) for kind in KINDS}
        | {f"labelled-{kind}": _components(kind, labelled=True) for kind in ("task", "solver", "gradient")},
    }


def _components(kind: Kind, labelled: bool) -> Schema:
    """The schema of any component of a kind: its name, or a mapping of its name and options."""
    names: list[str] = []
    mappings: list[Schema] = []
    for name, component in registry.components(kind).items():
        if component.missing():
            continue
        try:
            with guarded():
                factory: Any = component.load()
                mapping = _named(name, factory)
        except Exception:  # the options are code of others; ``fixedpoint doctor`` says what is wrong
            continue
        if component.aliases:
            mapping["properties"]["name"] = {"enum": list(component.names)}
        if component.summary:
            mapping["description"] = component.summary
        if labelled:
            mapping["properties"]["label"] = {"type": "string", "description": "what reports call it"}
        if not mapping["required"][1:]:  # no option is required, so the name alone is enough
            names += component.names
        mappings.append(mapping)
    return {"anyOf": [{"enum": names}, *mappings]}


def _named(name: str, cls: type[Options], needed: bool = True) -> Schema:
    """The schema of a mapping of a name, required if ``needed``, and the options of a class."""
    schema = _options(cls)
    schema["properties"] = {"name": {"const": name}, **schema["properties"]}
    schema["required"] = [*(["name"] if needed else []), *schema.get("required", [])]
    return schema


def _options(cls: type[Options]) -> Schema:
    schema: Schema = {"type": "object", "properties": _properties(cls), "additionalProperties": False}
    required = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # every options class is a dataclass
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {**schema, "required": required} if required and cls is not RunFile else schema


def _properties(cls: type[Options]) -> dict[str, Schema]:
    """The schema of every option of a class, by name."""
    model: Any = model_of(cls)  # type: ignore[arg-type]  # classes are hashable, whatever their instances are
    plain = model.model_json_schema()["properties"]
    properties: dict[str, Schema] = {}
    for name, annotation in option_types(cls).items():
        schema = {key: value for key, value in plain[name].items() if key != "title"}
        inner = nested(cls, name)
        if isinstance(inner, Choices):
            schema.pop("default", None)
            schema["anyOf"] = [*_choices(inner), *_nothing(annotation)]
        elif inner is not None:
            schema.pop("default", None)
            schema["anyOf"] = [_reference(inner), *_nothing(annotation)]
        properties[name] = schema
    return properties


def _choices(choices: Choices) -> list[Schema]:
    """The schemas of an option that accepts one of several options classes."""
    names = [name for name, cls in choices.classes.items() if not _options(cls).get("required")]
    only = len(choices.classes) == 1
    return [{"enum": names}, *(_named(name, cls, needed=not only) for name, cls in choices.classes.items())]


def _reference(kind: Kind, labelled: bool = False) -> Schema:
    return {"$ref": f"#/$defs/{'labelled-' * labelled}{kind}"}


def _nothing(annotation: Any) -> list[Schema]:
    """The schema of null, if the annotation accepts None."""
    return [{"type": "null"}] if type(None) in getattr(annotation, "__args__", ()) else []
