"""Options: declared once, checked on construction, whatever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from fixedpoint import Picard, Termination
from fixedpoint.core.options import OptionError, Options, option, option_types
from fixedpoint.core.solver import Solver


@dataclass(frozen=True)
class Example(Options):
    count: int = option(3, ge=1, le=9, help="how many")
    size: float = option(1.0, gt=0.0, lt=10.0, help="how large")
    kind: Literal["a", "b"] = option("a", help="which")
    limit: int | None = option(None, ge=2, help="at most")
    levels: tuple[float, ...] = option((), help="levels")
    inner: Solver = option(factory=Picard, help="a component")
    exact: bool = option(False, help="whether")

    def check(self) -> None:
        if self.kind == "b" and self.limit is None:
            raise OptionError("Example", "limit", "must be set for kind 'b'")


ACCEPTED = [
    ({}, {}),
    ({"size": 2}, {"size": 2.0}),
    ({"levels": [1, 2.5]}, {"levels": (1.0, 2.5)}),
    ({"limit": 5}, {"limit": 5}),
    ({"kind": "b", "limit": 2}, {"kind": "b", "limit": 2}),
    ({"inner": Picard(relaxation=0.5)}, {"inner": Picard(relaxation=0.5)}),
]


@pytest.mark.parametrize(("given", "kept"), ACCEPTED)
def test_values_are_taken_and_converted(given, kept):
    built = Example(**given)
    for name, value in kept.items():
        assert getattr(built, name) == value
        assert type(getattr(built, name)) is type(value)
    assert built == Example(**kept)
    assert hash(built) == hash(Example(**kept))


REFUSED = [
    ({"count": 0}, "count must be at least 1, got 0"),
    ({"count": 10}, "count must be at most 9, got 10"),
    ({"count": 2.0}, "count must be an integer, got 2.0"),
    ({"count": True}, "count must be an integer, got True"),
    ({"size": 0}, "size must be greater than 0.0, got 0"),
    ({"size": 10.0}, "size must be less than 10.0, got 10.0"),
    ({"size": float("nan")}, "size must be greater than 0.0, got nan"),
    ({"size": "big"}, "size must be a number, got 'big'"),
    ({"kind": "c"}, "kind must be one of 'a', 'b', got 'c'"),
    ({"limit": 1}, "limit must be at least 2, got 1"),
    ({"levels": 1.0}, "levels must be a list of a number, got 1.0"),
    ({"levels": ["x"]}, "levels must be a list of a number, got ['x']"),
    ({"inner": Termination()}, f"inner must be Solver, got {Termination()!r}"),
    ({"exact": 1}, "exact must be true or false, got 1"),
    ({"kind": "b"}, "limit must be set for kind 'b'"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=str)
def test_other_values_are_refused_naming_option_and_value(given, sentence):
    with pytest.raises(OptionError) as caught:
        Example(**given)
    assert str(caught.value) == f"Example: {sentence}"
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="memroy"):
        Example(memroy=3)  # type: ignore[call-arg]


def test_types_are_resolved_once():
    assert option_types(Example)["limit"] == int | None
    assert list(option_types(Example)) == ["count", "size", "kind", "limit", "levels", "inner", "exact"]
