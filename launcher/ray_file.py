"""What a fleet file says for Ray alone: the table ``[ray]``, and ``[llm.NAME.ray]`` for one LLM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..protocol.errors import ConfigurationError
from ..protocol.option import parse_file
from .line import placed
from .service import Fleet

_STRATEGIES = ("SPREAD", "DEFAULT")


@dataclass(frozen=True, slots=True)
class RayFile:
    """Which cluster, by what name the fleet is known there, and for each LLM the options of Ray's actors."""

    address: str | None
    name: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


def read_ray(file: Path, fleet: Fleet) -> RayFile:
    """What the file of ``fleet`` says for Ray.

    Raises:
        ConfigurationError: names the file, the line and the key, and says what to do.
    """
    content, text = parse_file(file, "the fleet file")
    reader = _Reader(file, text)
    common = reader.table(content, ("ray",))
    return RayFile(
        address=reader.text(common, ("ray", "address"), None),
        name=reader.text(common, ("ray", "name"), None) or _default_name(file),
        options={
            service.name: reader.options(common, ("ray",), is_common=True)
            | reader.options(
                reader.table(content["llm"][service.name], ("llm", service.name, "ray")), ("llm", service.name, "ray")
            )
            for service in fleet.services
        },
    )


def _default_name(file: Path) -> str:
    # Two files of one name, of two people, must not end each other's replicas.
    return f"{file.stem}-{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"


class _Reader:
    def __init__(self, file: Path, text: str) -> None:
        self._file, self._text = file, text
        self._checks: dict[str, Callable[[Any, tuple[str, ...]], Any]] = {
            "num-cpus": self._number,
            "memory": self._number,
            "resources": self._resources,
            "accelerator-type": self._words,
            "scheduling-strategy": self._strategy,
            "runtime-env": self._runtime,
        }

    def wrong(self, path: tuple[str, ...], sentence: str) -> ConfigurationError:
        return ConfigurationError(placed(self._file, self._text, path, sentence))

    def table(self, content: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        found = content.get(path[-1], {})
        if not isinstance(found, dict):
            raise self.wrong(path, f"must be a table: write [{'.'.join(path)}]")
        return cast(dict[str, Any], found)

    def text(self, table: Mapping[str, Any], path: tuple[str, ...], default: str | None) -> str | None:
        return self._words(table[path[-1]], path) if path[-1] in table else default

    def options(self, table: Mapping[str, Any], path: tuple[str, ...], *, is_common: bool = False) -> dict[str, Any]:
        """The options of Ray's actors in a table, by Ray's names."""
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"} if is_common else {}
        own = ("address", "name") if is_common else ()
        for key, value in table.items():
            name = key.replace("_", "-")
            if name in own:
                continue
            if name not in self._checks:
                there_are = ", ".join([*own, *self._checks])
                raise self.wrong((*path, key), f"there is no such key here: there are {there_are}")
            options[name.replace("-", "_")] = self._checks[name](value, (*path, key))
        return options

    def _number(self, value: Any, path: tuple[str, ...]) -> float:
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise self.wrong(path, f"must be a number from 0 on, got {value!r}")
        return value

    def _words(self, value: Any, path: tuple[str, ...]) -> str:
        if not isinstance(value, str) or not value:
            raise self.wrong(path, f"must be a text, got {value!r}")
        return value

    def _strategy(self, value: Any, path: tuple[str, ...]) -> str:
        if value not in _STRATEGIES:
            raise self.wrong(path, f"must be one of {', '.join(_STRATEGIES)}, got {value!r}")
        return value

    def _resources(self, value: Any, path: tuple[str, ...]) -> dict[str, float]:
        if not isinstance(value, dict):
            raise self.wrong(path, f"must be a table such as {{ fast_disk = 1 }}, got {value!r}")
        found = cast(dict[str, Any], value)
        for key, count in found.items():
            if key in ("CPU", "GPU", "memory"):
                raise self.wrong((*path, key), "has a key of its own: num-cpus, the LLM's gpus, memory")
            self._number(count, (*path, key))
        return found

    def _runtime(self, value: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(path, f'must be a table such as {{ pip = ["PACKAGE"] }}, got {value!r}')
        found = dict(cast(dict[str, Any], value))
        if "env_vars" in found:
            raise self.wrong((*path, "env_vars"), "belongs in [llm.NAME.env]; secrets, where Ray's hosts are started")
        folder = found.get("working_dir")
        if folder is not None and "://" not in str(folder):
            raise self.wrong(
                (*path, "working_dir"), "must be a URI, such as s3://BUCKET/code.zip: Ray brings no folder"
            )
        return found
