from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from genpool.protocol.errors import ConfigurationError
from genpool.tasks.output import LLMOutput
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker import loader
from genpool.worker.llm import LLM
from genpool.worker.loader import engine_settings, file_settings, load_engine, load_task, load_user_llm
from genpool.worker.setting import FileSettings, load_function


class Engine(LLM):
    """Keeps what it was made of."""

    def __init__(
        self,
        model: str | Path,
        task: Any = None,
        count: int = 1,
        share: float = 0.5,
        eager: bool = False,
        label: str = "a",
        stop: list[str] | None = None,
        seed: Optional[int] = None,  # noqa: UP045
        extra: dict[str, Any] | None = None,
        prompt_format: Literal["default", "openai"] | None = None,
        function: Callable[..., Any] | None = None,
        numbers: list[int] | None = None,
    ) -> None:
        super().__init__(TextGenerationTask() if task is None else task)
        self.made_of = {key: value for key, value in locals().items() if key not in ("self", "__class__")}

    @property
    def model_name(self) -> str:
        return "engine"

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        raise NotImplementedError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, importable by nothing else; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("count=3", 3),
        ("count=-1", -1),
        ("share=1e-3", 0.001),
        ("share=2", 2.0),
        ("eager=true", True),
        ("eager=Yes", True),
        ("eager=0", False),
        ("eager=off", False),
        ("label=a=b, c", "a=b, c"),
        ("label=none", "none"),
        ("label=", ""),
        ("stop=a", ["a"]),
        ("stop=a,b", ["a", "b"]),
        ('stop=["a,b", "\\n"]', ["a,b", "\n"]),
        ("stop=none", None),
        ("stop=", []),
        ("numbers=1,2", [1, 2]),
        ("numbers=[1, 2]", [1, 2]),
        ("seed=7", 7),
        ("seed=null", None),
        ('extra={"top_k": 3}', {"top_k": 3}),
        ("prompt_format=openai", "openai"),
        ("prompt_format=none", None),
        ("model=x.gguf", "x.gguf"),
        (" count =3", 3),
    ],
)
def test_a_setting_gets_the_type_of_its_argument(pair: str, value: Any) -> None:
    settings = engine_settings(Engine, [pair])
    key = pair.partition("=")[0].strip()
    assert settings == {key: value}
    assert type(settings[key]) is type(value)


def test_a_function_is_found_by_its_path() -> None:
    assert engine_settings(Engine, ["function=json:dumps"]) == {"function": __import__("json").dumps}
    with pytest.raises(ConfigurationError, match="setting function: json:no_such"):
        engine_settings(Engine, ["function=json:no_such"])


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("count=many", "the setting count must be a whole number, got 'many'"),
        ("count=1.5", "the setting count must be a whole number, got '1.5'"),
        ("count=none", "the setting count must be a whole number"),
        ("share=nan", "the setting share must be a number, got 'nan'"),
        ("eager=maybe", "the setting eager must be true or false, got 'maybe'"),
        ("seed=x", "the setting seed must be a whole number, got 'x'"),
        ("stop=[1]", "the setting stop must be a list, by commas or as JSON"),
        ("stop=[a", "the setting stop must be a list, by commas or as JSON"),
        ("numbers=1,x", "the setting numbers must be a list"),
        ("extra=[1]", "the setting extra must be a JSON object"),
        ("extra=top_k", "the setting extra must be a JSON object"),
        pytest.param("extra=" + "[" * 50_000, "the setting extra is nested too deeply$", id="extra=[[["),
        pytest.param("stop=" + "[" * 50_000, "the setting stop is nested too deeply$", id="stop=[[["),
        ("prompt_format=html", "the setting prompt_format must be one of default, openai, got 'html'"),
        ("function=dumps", "the setting function: a function or task is named as package.module:name"),
        ("colour=red", "Engine has no setting 'colour': it has count, eager, extra, function, label, model, numbers"),
        ("task=x", "Engine has no setting 'task'"),
        ("count", "a setting is written key=value, got 'count'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(pair: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        engine_settings(Engine, [pair])


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="count is given twice"):
        engine_settings(Engine, ["count=1", "count=2"])


@pytest.mark.parametrize(
    "key", ["api_key", "apikey", "API-KEY", "key", "token", "hf_token", "client_secret", "password"]
)
def test_a_secret_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigurationError, match="set api_key_env to the name of an environment variable") as raised:
        engine_settings(Engine, [f"{key}=sk-1"])
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("label=http://me:sk-1@host/v1", "label has a password in it"),
        ('extra={"api_key": "sk-1"}', "extra.api_key is a secret"),
        ('extra={"url": "http://me:sk-1@host/v1"}', "extra has a password in it"),
        ("api_key:sk-1", "api_key is a secret"),
        ("api_key sk-1", "api_key is a secret"),
    ],
)
def test_a_secret_in_a_value_is_refused_and_not_repeated(pair: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        engine_settings(Engine, [pair])
    assert "sk-1" not in str(raised.value)


class TestFileSettings:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("count", 3),
            ("share", 0.25),
            ("eager", True),
            ("label", "none"),
            ("stop", ["a,b", "\n"]),
            ("stop", []),
            ("seed", 7),
            ("extra", {"top_k": 3}),
            ("prompt_format", "openai"),
            ("model", "x.gguf"),
            ("numbers", [1, 2]),
        ],
    )
    def test_a_value_is_taken_with_its_type(self, key: str, value: Any) -> None:
        settings = file_settings(Engine, FileSettings(Path("w.toml"), {key: value}))
        assert settings == {key: value}
        assert type(settings[key]) is type(value)

    def test_a_whole_number_is_a_number(self) -> None:
        (share,) = file_settings(Engine, FileSettings(Path("w.toml"), {"share": 2})).values()
        assert (share, type(share)) == (2.0, float)

    def test_a_function_is_found_by_its_path(self) -> None:
        found = file_settings(Engine, FileSettings(Path("w.toml"), {"function": "json:dumps"}))
        assert found == {"function": __import__("json").dumps}

    @pytest.mark.parametrize(
        ("key", "value", "sentence"),
        [
            ("count", "3", "the setting count must be a whole number, got '3'"),
            ("count", 3.0, "the setting count must be a whole number, got 3.0"),
            ("count", True, "the setting count must be a whole number, got True"),
            ("share", float("nan"), "the setting share must be a number, got nan"),
            ("share", True, "the setting share must be a number, got True"),
            ("eager", 1, "the setting eager must be true or false, got 1"),
            ("eager", "yes", "the setting eager must be true or false, got 'yes'"),
            ("label", 5, "the setting label must be a text, got 5"),
            ("stop", "a,b", "the setting stop must be a list, got 'a,b'"),
            ("stop", [1], r"the setting stop must be a list, got \[1\]"),
            ("extra", "x", "the setting extra must be a table, got 'x'"),
            ("prompt_format", "html", "the setting prompt_format must be one of default, openai, got 'html'"),
            ("prompt_format", 3, "the setting prompt_format must be one of default, openai, got 3"),
            ("colour", 1, "Engine has no setting 'colour': it has count, eager"),
            ("task", "x", "Engine has no setting 'task'"),
        ],
    )
    def test_a_value_of_another_type_is_named_with_the_file(self, key: str, value: Any, sentence: str) -> None:
        with pytest.raises(ConfigurationError, match=f"^w.toml: {sentence}"):
            file_settings(Engine, FileSettings(Path("w.toml"), {key: value}))


class TestLoadEngine:
    @pytest.fixture(autouse=True)
    def _engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "scripted_engine", type(sys)("scripted_engine"))
        monkeypatch.setattr(sys.modules["scripted_engine"], "Engine", Engine, raising=False)
        monkeypatch.setitem(loader.ENGINES, "scripted", "scripted_engine:Engine")

    def test_model_settings_and_task_reach_the_constructor(self) -> None:
        task = TextGenerationTask("Be brief.")
        llm = load_engine("scripted", "a.gguf", ["count=3"], task)
        assert isinstance(llm, Engine)
        assert (llm.made_of["model"], llm.made_of["count"], llm.made_of["task"]) == ("a.gguf", 3, task)

    def test_the_model_may_be_a_setting(self) -> None:
        llm: Any = load_engine("scripted", None, ["model=a.gguf"], None)
        assert llm.made_of["model"] == "a.gguf"
        with pytest.raises(ConfigurationError, match="model is given twice"):
            load_engine("scripted", "b.gguf", ["model=a.gguf"], None)

    def test_the_command_line_goes_before_a_file(self) -> None:
        file = FileSettings(Path("w.toml"), {"model": "file.gguf", "count": 1, "share": 0.1})
        llm: Any = load_engine("scripted", None, ["count=2"], None, file)
        assert (llm.made_of["model"], llm.made_of["count"], llm.made_of["share"]) == ("file.gguf", 2, 0.1)
        llm = load_engine("scripted", "given.gguf", [], None, file)
        assert llm.made_of["model"] == "given.gguf"

    def test_as_many_requests_as_calls_where_nothing_else_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Server(Engine):
            def __init__(self, concurrency: int = 64) -> None:
                super().__init__("m")
                self.at_once = concurrency

        monkeypatch.setattr(sys.modules["scripted_engine"], "Server", Server, raising=False)
        monkeypatch.setitem(loader.ENGINES, "server", "scripted_engine:Server")
        file = FileSettings(Path("w.toml"), {"concurrency": 3})
        made: list[Any] = [
            load_engine("server", None, [], None),
            load_engine("server", None, [], None, None, 256),
            load_engine("server", None, ["concurrency=2"], None, None, 256),
            load_engine("server", None, [], None, file, 256),
        ]
        assert [llm.at_once for llm in made] == [64, 256, 2, 3]
        assert load_engine("scripted", "a.gguf", [], None, None, 256).concurrency == 1

    def test_what_is_needed_and_missing_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match=r"the engine scripted needs model: give --model$"):
            load_engine("scripted", None, [], None)

    def test_an_unknown_engine_is_told_the_known_ones(self) -> None:
        with pytest.raises(
            ConfigurationError, match="no engine 'magic': there are litellm, llamacpp, openai, scripted"
        ):
            load_engine("magic", None, [], None)

    @pytest.mark.parametrize(
        ("name", "package"),
        [("llamacpp", "xllamacpp"), ("openai", "openai"), ("litellm", "litellm"), ("transformers", "torch")],
    )
    def test_a_missing_extra_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
        # Those that were imported before would be found without their package.
        for module in [module for module in sys.modules if module.startswith("genpool.worker.engines.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigurationError, match=rf'needs the package {package}: pip install "genpool\[{name}\]"'):
            load_engine(name, "m", [], None)

    @pytest.mark.parametrize("name", ["llamacpp", "openai"])
    def test_every_argument_of_a_shipped_engine_can_be_set(self, name: str) -> None:
        pytest.importorskip({"llamacpp": "xllamacpp", "openai": "openai"}[name])
        cls = loader._engine_class(name)
        with pytest.raises(ConfigurationError, match=r"max_new_tokens.*temperature.*top_p"):
            engine_settings(cls, ["no_such=1"])
        typed = engine_settings(cls, ["max_new_tokens=5", "temperature=1", "stop=a", "prompt_format=openai", "seed=3"])
        assert typed == {"max_new_tokens": 5, "temperature": 1.0, "stop": ["a"], "prompt_format": "openai", "seed": 3}

    def test_llamacpp_names_the_missing_model_file(self, tmp_path: Path) -> None:
        pytest.importorskip("xllamacpp")
        with pytest.raises(ConfigurationError, match=r"absent\.gguf"):
            load_engine("llamacpp", str(tmp_path / "absent.gguf"), [], None)

    def test_llamacpp_loads(self, smollm2_path: Path) -> None:
        pytest.importorskip("xllamacpp")
        settings = ["n_ctx=256", "n_threads=1", "max_new_tokens=2"]
        llm = load_engine("llamacpp", str(smollm2_path), settings, TextGenerationTask(""))
        result: Any = llm.generate([{"input": "hi"}])
        llm.close()
        assert result[0][0]["prompt_used"] == [{"role": "user", "content": "hi"}]


class TestLoadFunction:
    def test_the_current_directory_is_searched(self, folder: Path) -> None:
        (folder / "mine.py").write_text("class Maker:\n    @staticmethod\n    def make(): return 5\n")
        assert load_function("mine:Maker.make")() == 5

    @pytest.mark.parametrize(
        ("spec", "sentence"),
        [
            ("mine", "named as package.module:name, got 'mine'"),
            ("mine:", "named as package.module:name"),
            ("mine:a b", "named as package.module:name"),
            ("absent.part:load", "there is no module 'absent'"),
            ("mine:absent", "the module mine has no 'absent'"),
            ("mine:value", "mine:value is int 5, and cannot be called"),
            ("mine:value.absent", "int 5 has no 'absent'"),
            ("lacking:load", "there is no module 'not_installed'"),
            ("broken:load", "importing broken raised ZeroDivisionError"),
        ],
    )
    def test_a_path_that_leads_nowhere_is_told(self, folder: Path, spec: str, sentence: str) -> None:
        (folder / "mine.py").write_text("value = 5\n")
        (folder / "lacking.py").write_text("import not_installed\n")
        (folder / "broken.py").write_text("1 / 0\n")
        with pytest.raises(ConfigurationError, match=sentence):
            load_function(spec)


class TestLoadTask:
    @pytest.fixture(autouse=True)
    def _tasks(self, folder: Path) -> None:
        (folder / "mytasks.py").write_text(
            "from genpool.tasks.text_generation import TextGenerationTask\n"
            "task = TextGenerationTask('Be brief.')\n"
            "def make(): return TextGenerationTask('Be kind.')\n"
            "def make_with(text): return TextGenerationTask(text)\n"
            "def fail(): raise OSError('no disk')\n"
            "class Duck:\n"
            "    input_args_names = ['x']\n"
            "    output_args_names = []\n"
            "    def generate_prompt(self, x): return x\n"
            "    def parse_output(self, text): return text\n"
            "number = 5\n"
        )

    @pytest.mark.parametrize(
        ("name", "system_prompt"),
        [("task", "Be brief."), ("make", "Be kind."), ("TextGenerationTask", TextGenerationTask().system_prompt)],
    )
    def test_an_object_a_class_or_a_function(self, name: str, system_prompt: str) -> None:
        task: Any = load_task(f"mytasks:{name}")
        assert task.system_prompt == system_prompt

    def test_what_has_the_methods_is_a_task(self) -> None:
        assert load_task("mytasks:Duck").input_args_names == ["x"]

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("number", "mytasks:number is no task: A task must have"),
            ("make_with", "makes no task when called without arguments: TypeError"),
            ("fail", "OSError: no disk"),
            ("absent", "has no 'absent'"),
        ],
    )
    def test_what_is_no_task_is_told(self, name: str, sentence: str) -> None:
        with pytest.raises(ConfigurationError, match=sentence):
            load_task(f"mytasks:{name}")


class TestLoadUserLlm:
    TASK = TextGenerationTask("Be brief.")

    def made(self, function: Callable[..., Any], task: Any = TASK) -> dict[str, Any]:
        llm = load_user_llm(function, task)
        assert isinstance(llm, Engine)
        return llm.made_of

    def test_a_loader_gets_the_task_where_it_takes_one(self) -> None:
        assert self.made(lambda task: Engine("a", task))["task"] is self.TASK
        assert self.made(lambda task=None: Engine("a", task))["task"] is self.TASK
        assert self.made(lambda *given: Engine("a", *given))["task"] is self.TASK
        assert self.made(functools.partial(Engine, "a"))["task"] is self.TASK

    def test_a_loader_without_arguments_gets_none(self) -> None:
        assert self.made(lambda: Engine("a"))["task"] is None
        assert self.made(lambda *, count=3, **more: Engine("a", count=count))["count"] == 3

    def test_without_a_task_only_a_loader_that_needs_one_gets_one(self) -> None:
        assert isinstance(self.made(lambda task: Engine("a", task), None)["task"], TextGenerationTask)
        assert self.made(lambda task=None: Engine("a", task), None)["task"] is None

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are read when the function is made")
    def test_an_annotation_may_name_what_is_not_imported(self, folder: Path) -> None:
        (folder / "lazy.py").write_text("def load(task: Task) -> Model:\n    return make(task)\n")
        load = load_function("lazy:load")
        load.__globals__["make"] = lambda task: Engine("a", task)
        assert self.made(load)["task"] is self.TASK

    def test_a_class_is_a_loader(self) -> None:
        class Mine(Engine):
            def __init__(self, task: Any) -> None:
                super().__init__("a", task)

        assert self.made(Mine)["task"] is self.TASK

    @pytest.mark.parametrize(("returned", "told"), [(None, "None"), ("model", "str 'model'"), (Engine, "ABCMeta")])
    def test_a_loader_that_returns_no_llm_is_named(self, returned: Any, told: str) -> None:
        def my_loader() -> Any:
            return returned

        with pytest.raises(
            ConfigurationError, match=rf"my_loader must return an LLM \(a genpool.LLM\), and returned {told}"
        ):
            load_user_llm(my_loader, None)

    def test_a_loader_that_needs_more_is_named(self) -> None:
        for function in (lambda task, path: None, lambda *, path: None):
            with pytest.raises(ConfigurationError, match=r"and needs .*path"):
                load_user_llm(function, None)

    def test_what_a_loader_raises_is_raised(self) -> None:
        def fail() -> Any:
            raise OSError("no such model")

        with pytest.raises(OSError, match="no such model"):
            load_user_llm(fail, None)
