from __future__ import annotations

import asyncio
import builtins
import copy
import inspect
import pickle
import traceback

import pytest

from genpool.protocol import errors
from genpool.protocol.errors import (
    Closed,
    ConfigurationError,
    DecodeError,
    EngineDead,
    EngineUnwell,
    Expired,
    GenerationError,
    GenpoolError,
    NoBroker,
    Refused,
    RemoteError,
    RowError,
    UnknownLLM,
    WorkerLost,
    generation_error,
    known_error,
)

BUILTINS = [one for one in vars(builtins).values() if inspect.isclass(one) and issubclass(one, Exception)]
OURS = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, GenpoolError)]
NEVER = (StopIteration, StopAsyncIteration, ExceptionGroup)


def failure(kind: type[BaseException] = ValueError, message: str = "too long", **more: str | int) -> RemoteError:
    return RemoteError(kind.__name__, message, kind=kind, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_error_has_the_one_root_and_says_when_it_is_raised(kind: type[GenpoolError]) -> None:
    assert issubclass(kind, GenpoolError)
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigurationError, ValueError),
        (RowError, ValueError),
        (NoBroker, ConnectionError),
        (Refused, ConnectionError),
        (UnknownLLM, LookupError),
        (Expired, TimeoutError),
        (Closed, RuntimeError),
    ],
)
def test_errors_are_caught_as_the_built_in_that_fits(kind: type[Exception], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="a sentence"):
        raise kind("a sentence")


@pytest.mark.parametrize("kind", [DecodeError, EngineUnwell, EngineDead, WorkerLost])
def test_errors_that_no_built_in_fits_are_ours_alone(kind: type[Exception]) -> None:
    assert kind.__mro__[1] is GenpoolError


# One row's failure.


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (failure(), "ValueError: too long"),
        (failure(llm="smollm2"), "ValueError: too long (LLM 'smollm2')"),
        (
            failure(llm="smollm2", worker="17", host="gpu1", attempts=3),
            "ValueError: too long (LLM 'smollm2', worker gpu1:17, after 3 attempts; see the worker's log)",
        ),
        (
            failure(llm="smollm2", worker="17", host="gpu1", traceback="Traceback …"),
            "ValueError: too long (LLM 'smollm2', worker gpu1:17)",
        ),
        (failure(llm="smollm2", attempts=1), "ValueError: too long (LLM 'smollm2')"),
    ],
)
def test_a_remote_error_says_what_and_where(error: RemoteError, text: str) -> None:
    assert str(error) == text


def test_a_remote_error_pickles_with_all_its_fields() -> None:
    error = failure(llm="smollm2", worker="17", host="gpu1", attempts=2, traceback="Traceback …")
    error.others.append(failure(KeyError, "name"))

    again = pickle.loads(pickle.dumps(error))

    assert vars(again) | {"others": None} == vars(error) | {"others": None}
    assert str(again) == str(error)
    assert [str(one) for one in again.others] == ["KeyError: name"]


@pytest.mark.parametrize(
    "name", ["", "Refused", "GenerationError", "os.system", "builtins.ValueError", "__import__", "eval", "SystemExit"]
)
def test_a_name_from_the_wire_leads_to_nothing_but_built_in_exceptions(name: str) -> None:
    assert known_error(name) is Exception
    assert {kind for kind in map(known_error, dir(builtins)) if kind is not Exception} == {*BUILTINS} - {Exception}
    assert known_error("WorkerLost") is WorkerLost


# A call's failures.


def test_a_generation_error_carries_failures_and_what_was_finished() -> None:
    failures = {2: failure(message="bad"), 1: failure(message="worse")}
    error = generation_error(failures, [["a"], [], ("b",)])

    assert error.failures == failures
    assert error.partial == [["a"], [], ["b"]]
    assert str(error) == "2 of 3 rows failed; row 1: ValueError: worse"


def test_a_call_with_one_input_says_only_what_failed() -> None:
    assert str(generation_error({0: failure()}, [[]])) == "ValueError: too long"


@pytest.mark.parametrize(
    "kind", [kind for kind in BUILTINS if not issubclass(kind, NEVER)], ids=lambda kind: kind.__name__
)
def test_the_common_type_of_all_failures_is_mixed_in(kind: type[Exception]) -> None:
    failures = {0: failure(kind), 3: failure(kind, "another")}
    error = generation_error(failures, [[]] * 4)

    with pytest.raises(kind) as caught:
        raise error

    assert isinstance(error, GenerationError)
    assert str(error) == f"2 of 4 rows failed; row 0: {kind.__name__}: too long"
    assert str(error) in "".join(traceback.format_exception(caught.value))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert sorted(again.failures) == [0, 3]
        assert again.partial == error.partial


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_one_of_our_errors_may_be_the_common_type(kind: type[GenpoolError]) -> None:
    error = generation_error({0: failure(kind)}, [[]])

    assert isinstance(error, kind)
    assert type(pickle.loads(pickle.dumps(error))) is type(error)


@pytest.mark.parametrize("kind", [*NEVER, KeyboardInterrupt, SystemExit, BaseException], ids=lambda kind: kind.__name__)
def test_a_type_that_would_do_harm_is_not_mixed_in(kind: type[BaseException]) -> None:
    assert type(generation_error({0: failure(kind)}, [[]])) is GenerationError


def test_an_awaited_call_can_fail_with_a_stop_iteration_of_an_engine() -> None:
    async def call() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(generation_error({0: failure(StopIteration)}, [[]]))
        await future

    with pytest.raises(GenerationError):
        asyncio.run(call())


def test_failures_of_several_types_have_none_in_common() -> None:
    assert type(generation_error({0: failure(ValueError), 1: failure(KeyError)}, [[], []])) is GenerationError


def test_failures_in_other_shares_of_the_input_count_too() -> None:
    first = failure(ValueError)
    first.others.append(failure(KeyError))

    assert type(generation_error({0: first}, [[]])) is GenerationError


def test_a_subtype_is_not_taken_for_its_base() -> None:
    error = generation_error({0: failure(UnicodeDecodeError)}, [[]])

    assert isinstance(error, ValueError)
    assert not isinstance(generation_error({0: failure(ValueError)}, [[]]), UnicodeDecodeError)


# Names from the wire.


def test_a_row_that_ended_its_workers_is_found_by_its_name() -> None:
    assert known_error("WorkerLost") is WorkerLost


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_a_built_in_is_found_by_its_name(kind: type[Exception]) -> None:
    assert issubclass(known_error(kind.__name__), kind)


@pytest.mark.parametrize("name", ["", "Exception", "print", "SystemExit", "KeyboardInterrupt", "os.system", "RowError"])
def test_any_other_name_is_an_exception_and_nothing_is_looked_up(name: str) -> None:
    assert known_error(name) is Exception
