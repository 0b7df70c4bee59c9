"""Every page, run by Streamlit's own test harness in this process."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import cupola_dashboards
from cupola_dashboards import sign_in

CONSOLE = Path(cupola_dashboards.__file__).parent / "console.py"
PATIENCE = 120


def show(view: str) -> AppTest:
    """One page, drawn."""
    script = f"from cupola_dashboards.views import {view}\n{view}.page()\n"
    return AppTest.from_string(script, default_timeout=PATIENCE).run()


def told(element: Any) -> str:
    """The visible text: markup characters are character references in Markdown."""
    return html.unescape(element.value)


@pytest.mark.parametrize("view", ["runs", "checkpoints", "lineage", "corpus", "annotate", "launch"])
def test_every_page_is_drawn_without_an_error(in_workspace: Any, view: str) -> None:
    page = show(view)
    assert [error.value for error in page.error] == []
    assert not page.exception
    assert page.title[0].value.lower() == view


@pytest.mark.parametrize("view", ["runs", "checkpoints", "lineage", "corpus", "annotate"])
def test_an_empty_workspace_says_how_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    monkeypatch.setenv("CUPOLA_HOME", str(tmp_path))
    page = show(view)
    assert not page.exception
    assert "`cupola run tiny`" in page.info[0].value


def test_the_runs_page_counts_and_shows_the_champion(in_workspace: Any) -> None:
    page = show("runs")
    assert {metric.label: metric.value for metric in page.metric} == {
        "Running now": "1", "Completed": "1", "Failed or cancelled": "1",
    }  # fmt: skip
    assert any("2.000 bits per byte, 50.0% (43 to 57) answered correctly" in text.value for text in page.markdown)


def test_a_failed_run_in_the_address_shows_its_error_and_log(in_workspace: Any) -> None:
    stage = in_workspace.workspace.registry.runs(parent=in_workspace.failed)[0]
    page = AppTest.from_string("from cupola_dashboards.views import runs\nruns.page()\n", default_timeout=PATIENCE)
    page.query_params["run"] = stage.id
    page.run()
    assert told(page.error[0]).startswith("stage pretrain: its processes ended with status 1. Log: ")
    assert "RuntimeError: the disk is full" in page.code[0].value


def test_the_champion_is_compared_with_the_newest_checkpoint_by_default(in_workspace: Any) -> None:
    page = show("checkpoints")
    assert told(page.success[0]).startswith("**dpo is better than sft:** dpo answers 12.5 points more")
    page.button[0].click().run()
    assert told(page.error[0]).startswith("**sft is worse than dpo:** sft answers 12.5 points fewer")


def test_two_without_a_common_evaluation_get_a_command_and_no_number(in_workspace: Any) -> None:
    pretrain = next(row for row in in_workspace.workspace.registry.artifacts("checkpoint") if row.stage == "pretrain")
    page = AppTest.from_string(
        "from cupola_dashboards.views import checkpoints\ncheckpoints.page()\n", default_timeout=PATIENCE
    )
    page.query_params["a"], page.query_params["b"] = pretrain.id, in_workspace.dpo.id
    page.run()
    assert told(page.warning[0]) == (
        f"**pretrain and dpo have no common evaluation:** No verdict: {pretrain.id} was never evaluated. "
        f"Evaluate both with: cupola checkpoint evaluate {pretrain.id} {in_workspace.dpo.id}"
    )
    assert not page.metric


def test_a_bad_override_is_refused_with_the_line_of_the_command(in_workspace: Any) -> None:
    page = show("launch")
    page.selectbox(key="recipe").select("tiny").run()
    page.text_area(key="overrides-tiny").input("stages.pretran.steps=5").run()
    assert told(page.error[0]) == "--set stages.pretran.steps: there is no stage 'pretran'. Did you mean 'pretrain'?"
    assert not [button for button in page.button if button.key == "start"]


def test_the_form_is_shown_as_a_command(in_workspace: Any) -> None:
    page = show("launch")
    page.selectbox(key="recipe").select("tiny").run()
    page.number_input(key="stages.pretrain.steps-tiny").set_value(30).run()
    page.number_input(key="seed-tiny").set_value(11).run()
    assert page.code[0].value == "cupola submit tiny --set seed=11 --set stages.pretrain.steps=30"


def test_without_a_server_the_launch_page_says_how_to_start_one(in_workspace: Any) -> None:
    page = show("launch")
    page.button(key="start").click().run()
    assert told(page.error[0]) == "No Prefect server is running. Start one with `cupola up`."


@pytest.fixture
def guarded_console(in_workspace: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], AppTest]]:
    monkeypatch.setenv("CUPOLA_CONSOLE_PASSWORD", "open sesame")
    sign_in.TRIES.forget()
    yield lambda: AppTest.from_file(str(CONSOLE), default_timeout=PATIENCE).run()
    sign_in.TRIES.forget()


def type_password(page: AppTest, password: str) -> AppTest:
    page.text_input[0].input(password)
    return page.button[0].click().run()


def test_nothing_is_shown_before_the_password(guarded_console: Callable[[], AppTest]) -> None:
    page = guarded_console()
    assert not page.metric
    type_password(page, "sesame")
    assert "CUPOLA_CONSOLE_PASSWORD" in page.error[0].value
    type_password(page, "open sesame")
    assert page.title[0].value == "Runs"


def test_after_five_wrong_passwords_each_has_to_wait_longer_in_every_session(
    guarded_console: Callable[[], AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(sign_in, "monotonic", lambda: clock[0])
    for _ in range(4):
        assert not type_password(guarded_console(), "wrong").warning
    page = type_password(guarded_console(), "wrong")
    assert page.warning[0].value == "Too many wrong passwords. Try again in 5 s."
    clock[0] += 4.9
    page = type_password(guarded_console(), "open sesame")
    assert page.warning[0].value == "Too many wrong passwords. Try again in 1 s."
    assert not page.title
    clock[0] += 0.2
    page = type_password(page, "wrong")
    assert page.warning[0].value == "Too many wrong passwords. Try again in 10 s."
    clock[0] += 10.1
    assert type_password(page, "open sesame").title[0].value == "Runs"


def test_a_hundred_guesses_take_more_than_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(sign_in, "monotonic", lambda: clock[0])
    tries = sign_in.Tries()
    for guess in range(100):
        assert not tries.admits(str(guess), "password")
        clock[0] += tries.wait()
    assert clock[0] == 5 + 10 + 20 + 40 + 92 * 60
    assert tries.admits("password", "password")


def test_an_invalid_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUPOLA_HOME", str(tmp_path))
    monkeypatch.setenv("CUPOLA_REGISTRY_URL", "mysql://nowhere")
    page = AppTest.from_file(str(CONSOLE), default_timeout=PATIENCE).run()
    assert not page.exception
    assert told(page.error[0]).startswith("CUPOLA_REGISTRY_URL='mysql://nowhere' must begin with")
