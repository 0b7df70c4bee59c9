"""The lifecycle as Prefect flows: one per stage, and one that chains them. Importing this imports Prefect."""
# mypy: disable-error-code="untyped-decorator"

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prefect import State, flow, tags, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, PrefectHTTPStatusError
from prefect.states import Cancelled

from cupola_flows.execution.restarts import CrashedError
from cupola_flows.orchestration.server_watch import server_watched
from cupola_flows.orchestration.sharing import share_places
from cupola_flows.recipe.schema import Recipe
from cupola_flows.reports.results import summarize
from cupola_flows.runs.opening import new_session, open_session
from cupola_flows.runs.scheduling import run_stages
from cupola_flows.runs.session import Session
from cupola_flows.servers.services import find_prefect
from cupola_flows.servers.sweeping import claimed, process_tag
from cupola_flows.stages.base import Stage
from cupola_flows.stages.table import kinds
from cupola_flows.terminal.display import PlainDisplay
from cupola_flows.terminal.text import in_markdown
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import CancelledError

MOST_RETRIES = 100
SERVER_IS_GONE = (httpx.HTTPError, PrefectHTTPStatusError)


OPENED: ContextVar[Session | None] = ContextVar("opened session", default=None)
"""The session that a command has opened for its lifecycle. It is no parameter: a deployment would show it."""


class Turn:
    """One thread's turn at a time, until it leaves or ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: threading.Thread | None = None

    def take(self) -> None:
        while not self._is_ours():
            time.sleep(0.05)

    def leave(self) -> None:
        with self._lock:
            if self._owner is threading.current_thread():
                self._owner = None

    def _is_ours(self) -> bool:
        with self._lock:
            if self._owner is None or not self._owner.is_alive():
                self._owner = threading.current_thread()
            return self._owner is threading.current_thread()


CREATION = Turn()
"""The turn to create a stage's flow run. Prefect numbers the runs of a flow without a lock, and takes two with the same
number for one."""


class Opened:
    """Passes a session in this process from flow to flow. Prefect stores only JSON parameters, so not this one."""

    def __init__(self, session: Session) -> None:
        self.session = session


def _stage_flow(kind: str, of: type[Stage]) -> Callable[..., Any]:
    """The flow that runs one kind of stage, as a part of the lifecycle or alone."""

    def run_alone_or_in_session(
        name: str,
        stage: Stage,
        recipe: str = "alone",
        seed: int = 0,
        template_date: date | None = None,
        workspace: Path | None = None,
        opened: Any = None,
    ) -> Any:
        """Run one stage.

        Args:
            name: The stage's name in its recipe.
            stage: The stage's settings. A stage that is run alone names its inputs as artifact:ID.
            recipe: The recipe's name.
            seed: The recipe's seed, used if the stage sets none.
            template_date: Today's date for chat templates.
            workspace: Folder of the workspace; empty for the worker's.
            opened: The `Opened` session that the stage belongs to; empty to run it alone.
        """
        if opened is None:
            alone = Recipe(name=recipe, seed=seed, template_date=template_date, stages={name: stage})
            session = new_session(alone, [], [name], workspace, PlainDisplay)
            with _claimed(), session.recorded(flow_run_id()):
                return _run_stage(session, name)
        CREATION.leave()
        return _run_stage(opened.session, name)

    run_alone_or_in_session.__annotations__["stage"] = of
    made: Callable[..., Any] = flow(name=kind, flow_run_name="{name}", description=(of.__doc__ or "").splitlines()[0])(
        run_alone_or_in_session
    )
    return made


STAGE_FLOWS: Mapping[str, Callable[..., Any]] = {kind: _stage_flow(kind, of) for kind, of in kinds().items()}


@flow(name="lifecycle", flow_run_name="{recipe}")
def lifecycle(
    recipe: str = "tiny",
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    workspace: Path | None = None,
) -> Any:
    """Run a recipe, each stage as a subflow.

    Args:
        recipe: A shipped recipe's name, or the path of a YAML file on the worker's machine.
        overrides: Settings to override, such as stages.pretrain.steps=200.
        only: Stages to run; empty for all.
        workspace: Folder of the workspace; empty for the worker's.
    """
    with _claimed():
        if (session := OPENED.get()) is None:
            session = open_session(recipe, overrides or [], only or [], workspace, PlainDisplay)
            session.waits = True
            if api := find_prefect(session.workspace.settings):
                share_places(session, api)
        try:
            with server_watched(session), session.recorded(flow_run_id()):
                run_stages(session, partial(run_stage, session))
        except CancelledError as error:
            return Cancelled(message=str(error))
        _publish_results(session)
        return {name: outcome.artifact.id for name, outcome in session.outcomes.items()}


def run_stage(session: Session, name: str) -> Artifact:
    """Run one stage as a subflow. If Prefect's server goes away, the stage's work is kept and later stages run without
    it."""
    stage, recipe = session.recipe.stages[name], session.recipe
    if session.prefect_is_gone.is_set():
        return session.execute(name)
    CREATION.take()
    try:
        STAGE_FLOWS[stage.kind](
            name=name,
            stage=session.resolved(name),
            recipe=recipe.name,
            seed=recipe.seed,
            template_date=recipe.template_date,
            workspace=session.workspace.settings.home,
            opened=Opened(session),
        )
    except CancelledRun:
        raise session.error or CancelledError(f"stage {name} was cancelled.") from None
    except SERVER_IS_GONE as error:
        session.lose_prefect(type(error).__name__)
    finally:
        CREATION.leave()
    return session.execute(name)


@contextmanager
def _claimed() -> Iterator[None]:
    """Tag this flow run and its subflows with this process; see `sweeping`."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and process_tag() not in run.tags:
        with suppress(*SERVER_IS_GONE), get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=claimed(run.tags))
    with tags(process_tag()):
        yield


def flow_run_id() -> str | None:
    """Id of the current flow run, if any."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def _run_stage(session: Session, name: str) -> Any:
    try:
        artifact = session.execute(name, step=_retried, prefect_id=flow_run_id())
    except CancelledError as error:
        return Cancelled(message=str(error))
    _describe(name, session.recipe.stages[name], artifact)
    return artifact.id


def _publish_results(session: Session) -> None:
    """Add a table of all results to the page of the run."""
    rows = [
        {
            "stage": name,
            "state": outcome.state,
            "artifact": outcome.artifact.id,
            "result": summarize(session.recipe.stages[name], outcome.artifact.metrics),
        }
        for name, outcome in session.outcomes.items()
    ]
    with suppress(*SERVER_IS_GONE):
        create_table_artifact(rows, key=_key(session.recipe.name, "results"), description="Results of every stage")


def _describe(name: str, stage: Stage, artifact: Artifact) -> None:
    """Add a stage's metrics and artifact to the page of its run."""
    rows = [{"metric": metric, "value": f"{value:,.6g}"} for metric, value in artifact.metrics.items()]
    text = in_markdown(f"{artifact.kind}: {summarize(stage, artifact.metrics)}")
    with suppress(*SERVER_IS_GONE):
        create_table_artifact(rows, key=_key(name, "metrics"), description=f"Metrics of {in_markdown(name)}")
        create_link_artifact(artifact.path.as_uri(), artifact.id, key=_key(name, "artifact"), description=text)


def _key(name: str, what: str) -> str:
    return f"{name}-{what}".replace("_", "-")


def _crashed(_task: Any, _run: Any, state: State) -> bool:
    """Whether to retry: after a crash, but not after user errors, cancellations and failures that the job reports."""
    return isinstance(state.result(raise_on_failure=False), CrashedError)


def _retried(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step as a task that is retried after a crash, so that its job resumes from the newest checkpoint. The limit
    is `restarts.Starts`, which is reached before the task's retries are used up."""

    @task(name="job", retries=MOST_RETRIES, retry_condition_fn=_crashed, cache_policy=NO_CACHE, persist_result=False)
    def job() -> Any:
        return function(*arguments)

    return job()
