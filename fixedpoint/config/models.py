"""Derives pydantic models from the options classes, so that a component declares its options only once.

The models are strict: ``"5"`` is no integer and ``true`` is no number. But an integer is accepted for a number, and a
list for a tuple. Options that hold components or further options accept anything here; ``resolve.py`` checks them.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fixedpoint.config.document import Document
from fixedpoint.config.errors import Path
from fixedpoint.config.words import bound_broken, type_words
from fixedpoint.core.options import nearest, option_types
from fixedpoint.registry.nesting import nested

__all__ = ["model_of", "wrong_options"]


@functools.cache
def model_of(cls: Any) -> type[BaseModel]:
    """Return the strict model of an options class, with the types, defaults, bounds and help texts of its fields."""
    fields: dict[str, Any] = {}
    for field in _options(cls):
        annotation = option_types(cls)[field.name]
        annotation = _strict(annotation, _bounds(field)) if nested(cls, field.name) is None else Any
        # The user types the alias. The attribute has a prefix, so that it cannot clash with attributes of BaseModel.
        settings: dict[str, Any] = {"alias": field.name, "description": field.metadata.get("help")}
        if field.default is not dataclasses.MISSING:
            settings["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            settings["default_factory"] = field.default_factory
        fields[f"option_{field.name}"] = (annotation, Field(**settings))
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    model: type[BaseModel] = create_model(cls.__name__, __config__=config, **fields)
    return model


def wrong_options(cls: Any, given: Mapping[str, Any], document: Document, at: Path) -> dict[Path, str]:
    """Return a sentence for every mistake in the values given for an options class, by the path within the values.

    Parameters
    ----------
    cls
        The options class.
    given
        Values by option name.
    document, at
        The document that has the values, and their path in it. Messages show the values as they were typed.
    """
    try:
        model_of(cls).model_validate(dict(given))
    except ValidationError as error:
        sentences: dict[Path, str] = {}
        for problem in error.errors(include_url=False, include_context=False):
            path, sentence = _sentence(cls, given, problem["type"], problem["loc"], document, at)
            sentences.setdefault(path, sentence)
        return sentences
    return {}


def _sentence(
    cls: Any, given: Mapping[str, Any], kind: str, location: tuple[int | str, ...], document: Document, at: Path
) -> tuple[Path, str]:
    """The path and the message for one error of pydantic; for an item of a list they are those of the item."""
    name = str(location[0])
    if kind == "extra_forbidden":
        return (name,), f"unknown option; {nearest(name, [field.name for field in _options(cls)])}"
    if kind == "missing":
        return (name,), "is required"
    annotation = option_types(cls)[name]
    value = given[name]
    path: Path = (name,)
    index = next((part for part in location[1:] if isinstance(part, int)), None)
    if index is not None and isinstance(value, (list, tuple)):
        annotation, value, path = _member(annotation), value[index], (name, index)
    metadata = next(field.metadata for field in _options(cls) if field.name == name)
    # Of a number that is none of the type, such as 1e5 for an integer, the type is the mistake.
    members = typing.get_args(annotation) or (annotation,)
    fits = isinstance(value, int) or float in members or int not in members
    if isinstance(value, (int, float)) and not isinstance(value, bool) and fits:
        broken = bound_broken(metadata, value)
        if broken:
            return path, f"must be {broken}, got {document.typed((*at, *path), value)}"
    quoted = document.in_quotes((*at, *path), value) if _admits_text(annotation) else ""
    return path, f"must be {type_words(annotation)}, got {document.typed((*at, *path), value)}{quoted}"


def _admits_text(annotation: Any) -> bool:
    """Whether a type accepts some string, so that a hint to put the value in quotes is useful."""
    members = typing.get_args(annotation) or (annotation,)
    return any(member is str or isinstance(member, str) or typing.get_origin(member) is Literal for member in members)


def _strict(annotation: Any, bounds: dict[str, Any]) -> Any:
    """The annotation with strict numbers within the bounds, and tuples that accept lists."""
    origin = typing.get_origin(annotation)
    if annotation is int or annotation is float:
        return Annotated[annotation, Field(strict=True, **bounds)]
    if origin in (typing.Union, types.UnionType):
        return Union[tuple(_strict(member, bounds) for member in typing.get_args(annotation))]  # noqa: UP007
    if origin is tuple:
        members = tuple(
            member if member is Ellipsis else _strict(member, bounds) for member in typing.get_args(annotation)
        )
        return Annotated[tuple[members], Field(strict=False)]  # type: ignore[valid-type]  # YAML has lists only
    return annotation


def _member(annotation: Any) -> Any:
    """The type of the items of a tuple type, or of the tuple type in a union."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        lists = [member for member in typing.get_args(annotation) if typing.get_origin(member) is tuple]
        annotation = lists[0]
    return next(member for member in typing.get_args(annotation) if member is not Ellipsis)


def _bounds(field: dataclasses.Field[Any]) -> dict[str, Any]:
    return {key: field.metadata[key] for key in ("ge", "gt", "le", "lt") if key in field.metadata}


def _options(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]
