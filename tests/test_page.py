"""The web page of a real broker in a real browser, with a fleet one of whose workers dies and comes back."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import ECHO, Gate
from fleet import PATIENCE_S, Fleet, until

pytest.importorskip("prometheus_client")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from genpool import ProcessLLM

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or CHROMEDRIVER is None:
    pytest.skip("there is no Chromium here: apt-get install chromium chromium-driver", allow_module_level=True)

pytestmark = pytest.mark.timeout(180)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1400",
)
# A name that would do something where it is taken for HTML.
HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "echo_llm.py").write_text(ECHO)
    with Fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    except WebDriverException as error:
        pytest.skip(f"Chromium does not start on this machine: {error.msg}")
    yield driver
    driver.quit()


def start_worker(fleet: Fleet, llm: str = "echo") -> int:
    environment = {"MODEL": "a model", "GATE": str(fleet.folder / "gate"), "PYTHONPATH": str(fleet.folder)}
    return fleet.start_worker(llm, "--load", "echo_llm:load", environment=environment).pid


def open_page(fleet: Fleet, browser: webdriver.Chrome) -> str:
    fleet.start_broker("--http", "127.0.0.1:0", "--settle", "0.1")
    log = (fleet.folder / "0-broker.log").read_text()
    found = re.search(r"health are on (http://127\.0\.0\.1:\d+)$", log, re.MULTILINE)
    assert found is not None
    browser.get(f"{found[1]}/")
    return found[1]


def text_of(browser: webdriver.Chrome, id_: str) -> str:
    return browser.find_element(By.ID, id_).text


def rows_of(browser: webdriver.Chrome, id_: str) -> list[list[str]]:
    """The cells of a table, in one look at the page."""
    script = """
        const rows = [...document.querySelectorAll(`#${arguments[0]} tbody tr`)];
        return rows.map(row => [...row.cells].map(cell => cell.textContent));
    """
    return browser.execute_script(script, id_)  # pyright: ignore[reportReturnType]


def states(browser: webdriver.Chrome) -> dict[int, str]:
    """The state of each worker that is shown, by its process."""
    return {int(row[1]): row[3] for row in rows_of(browser, "workers")}


def asked_for(browser: webdriver.Chrome) -> set[str]:
    """Every URL that the browser has asked somebody for. Its own first page is in itself."""
    messages: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    requests = [one["params"]["request"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return {one["url"] for one in requests if not one["url"].startswith(("chrome:", "data:"))}


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def look(browser: webdriver.Chrome, scheme: str) -> str:
    """Show the page in this colour scheme; gives the colour of its ground."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.save_screenshot(str(Path(browser.capabilities["chrome"]["userDataDir"]).parent / f"{scheme}.png"))
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")  # pyright: ignore[reportReturnType]


def test_a_worker_that_dies_and_comes_back_is_shown(fleet: Fleet, browser: webdriver.Chrome) -> None:
    url = open_page(fleet, browser)
    until(lambda: text_of(browser, "connection") == "Live")
    assert "No worker is connected." in text_of(browser, "workers")
    first, second = start_worker(fleet), start_worker(fleet)
    until(lambda: states(browser) == {first: "ready", second: "ready"})

    fleet.processes[1].kill()
    until(lambda: states(browser) == {second: "ready"})
    until(lambda: any(row[1].endswith(f":{first}") for row in rows_of(browser, "lost")))
    assert rows_of(browser, "lost")[0][2:] == ["echo", "0", "its connection broke"]

    third = start_worker(fleet)
    until(lambda: states(browser) == {second: "ready", third: "ready"})
    assert look(browser, "light") != look(browser, "dark")
    assert complaints(browser) == []
    files = {"page.css", "page.js", "icon.svg", "api/report", "api/history"}
    assert asked_for(browser) <= {f"{url}/{file}" for file in ("", *files)}


def test_rows_are_shown_as_they_run_and_fail(fleet: Fleet, browser: webdriver.Chrome) -> None:
    os.mkfifo(fleet.folder / "gate")
    gate = Gate(fleet.folder / "gate")
    open_page(fleet, browser)
    worker = start_worker(fleet)
    llm = ProcessLLM.connect("echo", fleet.address)
    try:
        llm.generate([{"input": "hello"}] * 20).result(PATIENCE_S)
        assert llm.generate([{"input": "fail"}] * 3).exception(PATIENCE_S) is not None
        held = llm.generate([{"input": "hold"}] * 2)
        until(lambda: states(browser) == {worker: "busy"})
        host = rows_of(browser, "workers")[0][0]
        until(lambda: [row[1:] for row in rows_of(browser, "slowest")] == [["echo", f"{host}:{worker}"]])
        (shown,) = rows_of(browser, "llms")
        assert shown[:6] == ["echo", "a model", "1 of 1", "1", shown[4], "1 of 1"]
        assert shown[8:] == ["20", "3", "0", "0"]
        # The history has a point every 10 s.
        until(lambda: rows_of(browser, "failures"), patience_s=60)
        assert rows_of(browser, "failures")[0][1:] == ["echo", "3", "0", "0"]
        until(lambda: browser.find_elements(By.CSS_SELECTOR, "#throughput path"), patience_s=60)
        assert "echo: " in text_of(browser, "throughput")
        assert "echo: 1" in text_of(browser, "queue")
        look(browser, "light")
        look(browser, "dark")
        until(lambda: held.done() or (gate.try_to_open() and False), "the end of the rows that are held")
    finally:
        llm.teardown()
    assert complaints(browser) == []


def test_what_peers_call_themselves_is_text(fleet: Fleet, browser: webdriver.Chrome) -> None:
    open_page(fleet, browser)
    start_worker(fleet, HOSTILE)
    until(lambda: [row[0] for row in rows_of(browser, "llms")] == [HOSTILE])
    until(lambda: HOSTILE in text_of(browser, "queue"))
    assert browser.find_elements(By.CSS_SELECTOR, "main img") == []
    assert browser.title == "genpool"
    assert complaints(browser) == []


def test_a_broker_that_is_gone_is_said_until_it_is_back(fleet: Fleet, browser: webdriver.Chrome) -> None:
    url = open_page(fleet, browser)
    until(lambda: text_of(browser, "connection") == "Live")
    fleet.processes[0].kill()
    until(lambda: "The broker does not answer: it cannot be reached" in text_of(browser, "connection"))
    fleet.start_broker("--http", url.removeprefix("http://"), "--settle", "0.1")
    until(lambda: text_of(browser, "connection") == "Live")
