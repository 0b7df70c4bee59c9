"""The lifecycle as Prefect flows: one flow a stage, and the flow that chains them. Importing this imports Prefect."""
# mypy: disable-error-code="untyped-decorator"

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
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

from cupola_flows.display import PlainDisplay
from cupola_flows.launching import open_session
from cupola_flows.restarts import CrashedError
from cupola_flows.results import summarize
from cupola_flows.server_watch import server_watched
from cupola_flows.session import Session
from cupola_flows.stages import (
    ConversationsStage,
    DistillationStage,
    DpoStage,
    EvaluateStage,
    GrpoStage,
    LongContextStage,
    MergeStage,
    OnlineDpoStage,
    PairsStage,
    PpoStage,
    PreferencesStage,
    PrepareStage,
    PretrainStage,
    PromoteStage,
    PruneStage,
    RewardStage,
    SftStage,
    SynthesizeStage,
    UpcycleStage,
    WarpStage,
)
from cupola_flows.sweeping import claimed, process_tag
from cupola_flows.words import in_markdown
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import CancelledError

SESSION: ContextVar[Session] = ContextVar("session")
"""The execution that the flows of this thread belong to."""
MOST_RETRIES = 100
SERVER_IS_GONE = (httpx.HTTPError, PrefectHTTPStatusError)

Inputs = dict[str, list[str]]
"""Field to the ids of the artifacts that a stage takes."""


@flow(name="prepare", flow_run_name="{name}")
def prepare_flow(name: str, stage: PrepareStage, inputs: Inputs) -> Any:
    """Raw text to token shards."""
    return _carry_out(name)


@flow(name="pretrain", flow_run_name="{name}")
def pretrain_flow(name: str, stage: PretrainStage, inputs: Inputs) -> Any:
    """Next-token training."""
    return _carry_out(name)


@flow(name="upcycle", flow_run_name="{name}")
def upcycle_flow(name: str, stage: UpcycleStage, inputs: Inputs) -> Any:
    """A dense checkpoint to a mixture of experts."""
    return _carry_out(name)


@flow(name="long_context", flow_run_name="{name}")
def long_context_flow(name: str, stage: LongContextStage, inputs: Inputs) -> Any:
    """Next-token training on longer sequences."""
    return _carry_out(name)


@flow(name="conversations", flow_run_name="{name}")
def conversations_flow(name: str, stage: ConversationsStage, inputs: Inputs) -> Any:
    """Conversations from tasks and corpus."""
    return _carry_out(name)


@flow(name="synthesize", flow_run_name="{name}")
def synthesize_flow(name: str, stage: SynthesizeStage, inputs: Inputs) -> Any:
    """Conversations that a model behind an endpoint writes."""
    return _carry_out(name)


@flow(name="sft", flow_run_name="{name}")
def sft_flow(name: str, stage: SftStage, inputs: Inputs) -> Any:
    """Supervised fine-tuning."""
    return _carry_out(name)


@flow(name="preferences", flow_run_name="{name}")
def preferences_flow(name: str, stage: PreferencesStage, inputs: Inputs) -> Any:
    """Pairs from scored samples."""
    return _carry_out(name)


@flow(name="pairs", flow_run_name="{name}")
def pairs_flow(name: str, stage: PairsStage, inputs: Inputs) -> Any:
    """Pairs from files."""
    return _carry_out(name)


@flow(name="dpo", flow_run_name="{name}")
def dpo_flow(name: str, stage: DpoStage, inputs: Inputs) -> Any:
    """Direct preference optimization."""
    return _carry_out(name)


@flow(name="reward", flow_run_name="{name}")
def reward_flow(name: str, stage: RewardStage, inputs: Inputs) -> Any:
    """A reward model from pairs."""
    return _carry_out(name)


@flow(name="distillation", flow_run_name="{name}")
def distillation_flow(name: str, stage: DistillationStage, inputs: Inputs) -> Any:
    """A teacher's distributions, learnt."""
    return _carry_out(name)


@flow(name="merge", flow_run_name="{name}")
def merge_flow(name: str, stage: MergeStage, inputs: Inputs) -> Any:
    """Several checkpoints to one."""
    return _carry_out(name)


@flow(name="prune", flow_run_name="{name}")
def prune_flow(name: str, stage: PruneStage, inputs: Inputs) -> Any:
    """A checkpoint to a smaller one."""
    return _carry_out(name)


@flow(name="grpo", flow_run_name="{name}")
def grpo_flow(name: str, stage: GrpoStage, inputs: Inputs) -> Any:
    """Group relative policy optimization."""
    return _carry_out(name)


@flow(name="ppo", flow_run_name="{name}")
def ppo_flow(name: str, stage: PpoStage, inputs: Inputs) -> Any:
    """Proximal policy optimization."""
    return _carry_out(name)


@flow(name="online_dpo", flow_run_name="{name}")
def online_dpo_flow(name: str, stage: OnlineDpoStage, inputs: Inputs) -> Any:
    """DPO on the latest answers."""
    return _carry_out(name)


@flow(name="warp", flow_run_name="{name}")
def warp_flow(name: str, stage: WarpStage, inputs: Inputs) -> Any:
    """Rounds of GRPO runs, merged."""
    return _carry_out(name)


@flow(name="evaluate", flow_run_name="{name}")
def evaluate_flow(name: str, stage: EvaluateStage, inputs: Inputs) -> Any:
    """Held-out text, tasks and generations."""
    return _carry_out(name)


@flow(name="promote", flow_run_name="{name}")
def promote_flow(name: str, stage: PromoteStage, inputs: Inputs) -> Any:
    """Move an alias, if the numbers allow."""
    return _carry_out(name)


STAGE_FLOWS: Mapping[str, Callable[..., Any]] = {
    "prepare": prepare_flow,
    "pretrain": pretrain_flow,
    "upcycle": upcycle_flow,
    "long_context": long_context_flow,
    "conversations": conversations_flow,
    "synthesize": synthesize_flow,
    "sft": sft_flow,
    "preferences": preferences_flow,
    "pairs": pairs_flow,
    "dpo": dpo_flow,
    "reward": reward_flow,
    "distillation": distillation_flow,
    "merge": merge_flow,
    "prune": prune_flow,
    "grpo": grpo_flow,
    "ppo": ppo_flow,
    "online_dpo": online_dpo_flow,
    "warp": warp_flow,
    "evaluate": evaluate_flow,
    "promote": promote_flow,
}


@flow(name="lifecycle", flow_run_name="{recipe}")
def lifecycle(
    recipe: str = "tiny",
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    workspace: Path | None = None,
) -> Any:
    """Carry out a recipe: every stage a flow of its own.

    Args:
        recipe: A shipped recipe's name, or the path of a YAML file on the worker's machine.
        overrides: Keys to change, such as stages.pretrain.steps=200.
        only: Stages to run; empty for all of them.
        workspace: Where local state is kept; empty for the worker's own.
    """
    with _claimed():
        session = SESSION.get(None)
        if session is None:
            session = open_session(recipe, overrides or [], only or [], workspace, PlainDisplay)
            SESSION.set(session)
        try:
            with server_watched(session), session.recorded(flow_run_id()):
                for name in session.names:
                    run_stage(session, name)
        except CancelledError as error:
            return Cancelled(message=str(error))
        _tell(session)
        return {name: outcome.artifact.id for name, outcome in session.outcomes.items()}


def run_stage(session: Session, name: str) -> Artifact:
    """One stage as a subflow. When Prefect's server goes away, the stage's work is not lost, and the next go on without."""
    stage = session.recipe.stages[name]
    inputs = {field: [artifact.id for artifact in found] for field, found in session.inputs(name).items()}
    if session.prefect_is_gone.is_set():
        return session.execute(name)
    try:
        STAGE_FLOWS[stage.kind](name=name, stage=stage, inputs=inputs)
    except CancelledRun:
        raise session.error or CancelledError(f"stage {name} was cancelled.") from None
    except SERVER_IS_GONE as error:
        session.lose_prefect(type(error).__name__)
    return session.execute(name)


@contextmanager
def _claimed() -> Iterator[None]:
    """The process that carries this flow run and its stages' out, written on them: see `sweeping`."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and process_tag() not in run.tags:
        with suppress(*SERVER_IS_GONE), get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=claimed(run.tags))
    with tags(process_tag()):
        yield


def flow_run_id() -> str | None:
    """The id of the flow run that this is called in."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def _carry_out(name: str) -> Any:
    session = SESSION.get()
    try:
        artifact = session.execute(name, step=_retried, prefect_id=flow_run_id())
    except CancelledError as error:
        return Cancelled(message=str(error))
    kind = session.recipe.stages[name].kind
    _describe(name, kind, artifact)
    return artifact.id


def _tell(session: Session) -> None:
    """The whole life in one table, on the page of its run."""
    rows = [
        {
            "stage": name,
            "state": outcome.state,
            "artifact": outcome.artifact.id,
            "result": summarize(session.recipe.stages[name].kind, outcome.artifact.metrics),
        }
        for name, outcome in session.outcomes.items()
    ]
    with suppress(*SERVER_IS_GONE):
        create_table_artifact(rows, key=_key(session.recipe.name, "results"), description="What every stage gave")


def _describe(name: str, kind: str, artifact: Artifact) -> None:
    """What the stage gave, on the page of its run."""
    rows = [{"metric": metric, "value": f"{value:,.6g}"} for metric, value in artifact.metrics.items()]
    text = in_markdown(f"{artifact.kind}: {summarize(kind, artifact.metrics)}")
    with suppress(*SERVER_IS_GONE):
        create_table_artifact(rows, key=_key(name, "metrics"), description=f"What {in_markdown(name)} measured")
        create_link_artifact(artifact.path.as_uri(), artifact.id, key=_key(name, "artifact"), description=text)


def _key(name: str, what: str) -> str:
    return f"{name}-{what}".replace("_", "-")


def _crashed(_task: Any, _run: Any, state: State) -> bool:
    """A mistake of the user's and a cancellation come again, and so does what the job itself gave up; a crash may not."""
    return isinstance(state.result(raise_on_failure=False), CrashedError)


def _retried(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step as a task that is tried again after a crash: a job goes on from its newest checkpoint, as often as it may
    be started (`restarts.Starts`, which ends this before the retries do)."""

    @task(name="job", retries=MOST_RETRIES, retry_condition_fn=_crashed, cache_policy=NO_CACHE, persist_result=False)
    def job() -> Any:
        return function(*arguments)

    return job()
