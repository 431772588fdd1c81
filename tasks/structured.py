"""The task of answering a text with JSON of a given shape."""

# The package of the extra `structured` is imported where it is used, and need not be there for the rest.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .base import Task
from .json_value import json_values
from .prompt import Prompt
from .thought import without_thought

_SYSTEM_PROMPT = "You answer with JSON and with nothing else."


@dataclass
class StructuredTask(Task):
    """Answers ``input`` with JSON that fits ``schema``.

    The schema is a part of the prompt, and goes to the engines that can enforce it as their option
    ``response_format``. ``parse_output`` gives ``{"generations": value}``, plain JSON in any case: where ``schema``
    is a model, ``Model.model_validate(value)`` makes it one of those.

    Attributes:
        schema: a JSON Schema (it needs the package ``jsonschema``), or a pydantic model class.
        system_prompt: how the model shall behave; may be empty.

    Raises:
        TypeError: ``schema`` is neither, or the system prompt is no text.
        ValueError: ``schema`` is a dict, and no JSON Schema.
        ImportError: ``schema`` is a dict, and ``jsonschema`` is not installed.
    """

    schema: Mapping[str, Any] | type[Any]
    system_prompt: str = _SYSTEM_PROMPT

    def __post_init__(self) -> None:
        if not isinstance(cast(object, self.system_prompt), str):
            raise TypeError(f"`system_prompt` must be a text, not {type(self.system_prompt).__name__}.")
        self._json_schema = _json_schema(self.schema)

    @property
    def input_args_names(self) -> list[str]:
        return ["input"]

    @property
    def output_args_names(self) -> list[str]:
        return ["generations"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """What engines that can enforce a schema are asked for."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", str(self._json_schema.get("title", "")))[:64]
        schema = {"name": name or "answer", "schema": self._json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def generate_prompt(self, input: str, **_: Any) -> Prompt:
        """The prompt for the text ``input``.

        Raises:
            TypeError: ``input`` is no text.
        """
        if not isinstance(cast(object, input), str):
            raise TypeError(f"`input` must be a text, not {type(input).__name__}.")
        schema = json.dumps(self._json_schema, ensure_ascii=False)
        return Prompt(
            self.system_prompt, f"{input}\n\nAnswer with JSON that fits this schema, and with nothing else:\n{schema}"
        )

    def parse_output(self, output: str) -> dict[str, Any]:
        """The JSON in ``output`` that fits the schema: the last one, for some models think aloud first.

        Raises:
            ValueError: there is no JSON in it, or none that fits.
        """
        values = json_values(without_thought(output))
        problem = "the completion holds no JSON that is whole"
        for value in reversed(values):
            try:
                return {"generations": self._validated(value)}
            except ValueError as error:
                problem = f"the completion's JSON does not fit the schema: {error}"
        raise ValueError(problem)

    def _validated(self, value: Any) -> Any:
        if isinstance(self.schema, type):
            model: Any = self.schema
            # By way of JSON, for a model may take a text for a date there, and by no other way.
            read = model.model_validate_json(json.dumps(value)).model_dump(mode="json", by_alias=True)
            # A model may write other names than it reads, or leave some out.
            return read if _fits(model, read) else value
        return _fitting(value, self._json_schema)


def _json_schema(schema: object) -> Mapping[str, Any]:
    """The JSON Schema of ``schema``, checked."""
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        return cast(Any, schema).model_json_schema()
    if not isinstance(schema, Mapping):
        kind = f"the class {schema.__name__}" if isinstance(schema, type) else type(schema).__name__
        raise TypeError(f"`schema` must be a JSON Schema (a dict) or a pydantic model class, not {kind}.")
    found = dict(cast(Mapping[str, Any], schema))
    jsonschema = _jsonschema()
    try:
        json.dumps(found)
        _validator_class(found).check_schema(found)
    except jsonschema.exceptions.SchemaError as error:
        raise ValueError(f"`schema` is no JSON Schema: {error.message} (at {error.json_path}).") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"`schema` is no JSON Schema: {error}.") from error
    return found


def _fits(model: Any, value: Any) -> bool:
    try:
        model.model_validate_json(json.dumps(value))
    except ValueError:
        return False
    return True


def _fitting(value: Any, schema: Mapping[str, Any]) -> Any:
    """``value``, which fits ``schema``.

    Raises:
        ValueError: it does not; says where.
    """
    # With the specifications alone: a `$ref` to elsewhere is never fetched.
    from jsonschema_specifications import REGISTRY

    validator = _validator_class(schema)(schema, registry=REGISTRY)
    error = _jsonschema().exceptions.best_match(validator.iter_errors(value))
    if error is not None:
        raise ValueError(f"{error.message} (at {error.json_path})")
    return value


def _validator_class(schema: Mapping[str, Any]) -> Any:
    """The class for the draft that ``schema`` names, the latest where it names none."""
    jsonschema = _jsonschema()
    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


def _jsonschema() -> Any:
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise ImportError(
            'a StructuredTask with a JSON Schema needs the package jsonschema: pip install "genpool[structured]", '
            "or give it a pydantic model"
        ) from error
    return jsonschema
