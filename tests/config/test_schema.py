"""The JSON schema: shipped run files fit it, wrong ones do not, and it is that of the components there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fixedpoint.config.document import parse
from fixedpoint.config.merging import load_document
from fixedpoint.config.runfile import load, to_yaml
from fixedpoint.config.schema import run_file_schema

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/**/*.yaml")])


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = run_file_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def errors(validator: Draft202012Validator, data: Any) -> list[str]:
    return [error.message for error in validator.iter_errors(data)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_run_file_fits_as_written_and_as_resolved(path: Path, validator: Draft202012Validator) -> None:
    text = path.read_text()
    if path.parent.name == "configs":
        assert text.startswith("# yaml-language-server: $schema=run.schema.json\n")
        # Those of the examples name components of a package that is not installed here.
        assert errors(validator, parse(text, path.name).data) == []
        assert errors(validator, load_document(path).data) == []
    if path.parent.name == "configs" and "hf download" not in text:  # those are resolved where their models are made
        assert errors(validator, parse(to_yaml(load(path).plain()), path.name).data) == []


def test_the_shipped_schema_is_that_of_the_components(validator: Draft202012Validator) -> None:
    """``fixedpoint schema --output configs/run.schema.json`` makes it."""
    assert json.loads((ROOT / "configs" / "run.schema.json").read_text()) == validator.schema


@pytest.mark.parametrize(
    "wrong",
    [
        {"solvers": ["picard"]},
        {"tasks": [], "solvers": ["picard"]},
        {"tasks": ["ddim-sampling"], "solvers": ["pickard"]},
        {"tasks": ["ddim-sampling"], "solvers": [{"name": "anderson", "memroy": 3}]},
        {"tasks": ["ddim-sampling"], "solvers": [{"name": "anderson", "memory": 0}]},
        {"tasks": ["ddim-sampling"], "solvers": [{"name": "chain", "accelerator": {"name": "anderson", "memroy": 3}}]},
        {"tasks": [{"name": "ddim-sampling", "model": "gaussian"}], "solvers": ["picard"]},
        {"tasks": [{"name": "ddim-sampling", "model": {"name": "diffusers"}}], "solvers": ["picard"]},
        {"tasks": ["ddim-sampling"], "solvers": ["picard"], "termination": {"rtol": "small"}},
        {"tasks": ["ddim-sampling"], "solvers": ["picard"], "expect": {"relative_error": "small"}},
        {"tasks": ["ddim-sampling"], "solvers": ["picard"], "seeds": [1, 1]},
        {"tasks": ["ddim-sampling"], "solvers": ["picard"], "tresholds": 3},
    ],
    ids=str,
)
def test_what_is_wrong_does_not_fit(wrong: dict[str, Any], validator: Draft202012Validator) -> None:
    assert errors(validator, wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"tasks": ["ddim-sampling"], "solvers": ["picard", {"name": "anderson", "memory": 3, "label": "three"}]},
        {"extends": "other.yaml", "seeds": [1, 2]},
        {"tasks": [{"name": "ddim-sampling", "schedule": {"clip_sample": False}}], "solvers": ["serial"]},
        {"tasks": [{"name": "ddim-sampling", "schedule": None, "model": "shapes"}], "solvers": ["serial"]},
        {
            "tasks": [{"name": "ddim-sampling", "model": {"name": "diffusers", "path": "x", "classes": [1]}}],
            "solvers": [{"name": "chain", "accelerator": "broyden"}],
            "executor": "in-process",
        },
    ],
    ids=str,
)
def test_what_is_right_fits(right: dict[str, Any], validator: Draft202012Validator) -> None:
    assert errors(validator, right) == []


def test_installed_plugins_are_in_it(toys: object) -> None:
    mappings = run_file_schema()["$defs"]["task"]["anyOf"][1:]
    assert "toy" in [mapping["properties"]["name"].get("const") for mapping in mappings]
