"""JSON of a given shape, by a JSON Schema or a pydantic model."""

# Where pydantic is not installed these tests are skipped, and their types are not known.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUntypedBaseClass=false

from __future__ import annotations

import datetime
import json
import pickle
import sys
from typing import Any

import pytest
from extras import require

from genpool import StructuredTask
from genpool.tasks.prompt import Prompt

require("jsonschema")
require("pydantic")

from pydantic import BaseModel, Field  # noqa: E402  after the look whether it is there

SCHEMA = {
    "title": "A person's age!",
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANN = {"name": "Ann", "age": 7}


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)
    born: datetime.date | None = None


BOTH = pytest.mark.parametrize("schema", [SCHEMA, Person])


@BOTH
def test_names_and_prompt(schema: Any) -> None:
    task = StructuredTask(schema, "Be brief.")
    assert (task.input_args_names, task.output_args_names) == (["input"], ["generations"])
    prompt = task.generate_prompt(input="Who?", more="ignored")
    assert isinstance(prompt, Prompt)
    assert prompt.system_prompt == "Be brief."
    assert prompt.formatted_prompt.startswith("Who?\n")
    asked_for = json.loads(prompt.formatted_prompt.splitlines()[-1])
    assert asked_for["required"] == ["name", "age"]
    assert task.generation_kwargs["response_format"]["json_schema"]["schema"] == asked_for


def test_what_engines_are_asked_for() -> None:
    asked_for = StructuredTask(SCHEMA).generation_kwargs
    schema = {"name": "A_person_s_age_", "schema": SCHEMA}
    assert asked_for == {"response_format": {"type": "json_schema", "json_schema": schema}}
    assert StructuredTask(Person).generation_kwargs["response_format"]["json_schema"]["name"] == "Person"
    assert StructuredTask({}).generation_kwargs["response_format"]["json_schema"]["name"] == "answer"


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "age": 7}',
        'Of course!\n```json\n{"name": "Ann", "age": 7}\n```\nAnything else?',
        'Maybe {"name": "Bob"}? No: {"name": "Ann", "age": 7}.',
        '<think>{"name": "Bob", "age": 3} is wrong.</think>{"name": "Ann", "age": 7}',
        '<think>{"name": "Bob" is wrong.</think>{"name": "Ann", "age": 7}',
        '{"name": "Ann", "age": 7} {"name": "Bob", "age": -1}',
    ],
)
def test_the_last_json_that_fits_is_found(schema: Any, text: str) -> None:
    (name, age, *rest) = StructuredTask(schema).parse_output(text)["generations"].items()
    assert dict([name, age]) == ANN
    assert rest in ([], [("born", None)])


@BOTH
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no JSON that is whole"),
        ('{"name": "Ann", "age": ', "holds no JSON that is whole"),
        ('{"name": "Ann"}', "does not fit the schema: .*age"),
        ('{"name": "Ann", "age": "old"}', "does not fit the schema: .*age"),
        ('{"name": "Ann", "age": -1}', "does not fit the schema: .*age"),
        ("[]", "does not fit the schema"),
        ('<think>{"name": "Ann", "age": 7}, or', "holds no JSON that is whole"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_where(schema: Any, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){problem}"):
        StructuredTask(schema).parse_output(text)


def test_a_model_gives_plain_json_that_makes_it_again() -> None:
    value = StructuredTask(Person).parse_output('{"name": "Ann", "age": 7, "born": "2001-02-03"}')["generations"]
    assert value == {"name": "Ann", "age": 7, "born": "2001-02-03"}
    assert Person.model_validate(value).born == datetime.date(2001, 2, 3)


class Renamed(BaseModel):
    name: str = Field(serialization_alias="Name")


class Reticent(BaseModel):
    name: str
    age: int = Field(exclude=True)


@pytest.mark.parametrize("model", [Renamed, Reticent])
def test_a_model_that_writes_something_else_than_it_reads_gives_what_makes_it_again(model: Any) -> None:
    value = StructuredTask(model).parse_output(json.dumps(ANN))["generations"]
    assert model.model_validate(value) == model.model_validate(ANN)


def test_a_schema_need_not_be_of_an_object() -> None:
    assert StructuredTask({"enum": ["red", "blue"]}).parse_output('"red"') == {"generations": "red"}
    assert StructuredTask({"type": "array"}).parse_output("Here: [1, 2]") == {"generations": [1, 2]}


def test_a_reference_to_elsewhere_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[Any] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *said, **more: asked_for.append(said))
    task = StructuredTask({"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match="Unresolvable"):
        task.parse_output("{}")
    assert asked_for == []


@pytest.mark.parametrize(
    ("schema", "error", "sentence"),
    [
        (None, TypeError, r"must be a JSON Schema \(a dict\) or a pydantic model class, not NoneType"),
        (dict, TypeError, "not the class dict"),
        (Person(name="Ann", age=7), TypeError, "not Person"),
        ({"type": "thing"}, ValueError, r"`schema` is no JSON Schema: 'thing' is not valid .* \(at \$.type\)"),
        ({"const": {1, 2}}, ValueError, "`schema` is no JSON Schema: Object of type set is not JSON serializable"),
    ],
)
def test_what_is_no_schema(schema: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        StructuredTask(schema)


def test_texts_are_texts() -> None:
    with pytest.raises(TypeError, match="`system_prompt` must be a text, not NoneType"):
        StructuredTask(SCHEMA, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`input` must be a text, not int"):
        StructuredTask(SCHEMA).generate_prompt(7)  # type: ignore[arg-type]


@BOTH
def test_it_can_be_pickled(schema: Any) -> None:
    copied = pickle.loads(pickle.dumps(StructuredTask(schema)))
    assert copied == StructuredTask(schema)
    assert copied.parse_output(json.dumps(ANN))["generations"]["name"] == "Ann"


def test_without_the_package_a_dict_says_what_to_install_and_a_model_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ImportError, match=r'needs the package jsonschema: pip install "genpool\[structured\]"'):
        StructuredTask(SCHEMA)
    assert StructuredTask(Person).parse_output(json.dumps(ANN))
