"""`cupola checkpoint evaluate`: comparable evaluations of checkpoints from any recipes."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from cupola_flows.cli.checkpoints.base import resolve_checkpoint
from cupola_flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from cupola_flows.orchestration.running import run_plain
from cupola_flows.recipe.schema import Recipe
from cupola_flows.recipe.validation import validate
from cupola_flows.reports.evaluations import DECIDE, evaluations, newest
from cupola_flows.reports.results import print_evaluation, read_results
from cupola_flows.runs.session import Session
from cupola_flows.stages.base import ARTIFACT
from cupola_flows.stages.evaluation.evaluate import EvaluateStage
from cupola_flows.terminal.display import make_display
from cupola_flows.terminal.text import stdout
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_platform.workspace import Workspace

NAME = "evaluate"


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    app.command("evaluate", epilog="Example: cupola checkpoint evaluate champion 3f2a90")(evaluate_command)


def evaluate_command(
    references: Annotated[list[str], typer.Argument(metavar="ID...", help="Checkpoints: ids, aliases or folders.")],
    like: Annotated[
        str, typer.Option(metavar="ID", help="Evaluation whose text, tasks and settings to reuse. Default: see above.")
    ] = "",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Evaluate checkpoints on the same held-out text and tasks, so that they can be compared.

    Settings and data come from the newest evaluation of the first checkpoint
    that has one. Without any, the tokens and tasks in the checkpoints' lineage
    are used.
    """
    ws = open_workspace(workspace)
    checkpoints = [resolve_checkpoint(reference, workspace) for reference in references]
    stage = _like(ws, like) if like else _as_before(ws, checkpoints)
    named = tuple(dict.fromkeys(f"{ARTIFACT}{artifact.id}" for artifact in checkpoints))
    recipe = Recipe(name=NAME, stages={NAME: stage.model_copy(update={"checkpoints": named})})
    validate(recipe, ws.settings)
    console = Console(stderr=True)
    session = Session(
        workspace=ws, recipe=recipe, names=[NAME], display=partial(make_display, console=console)({NAME: NAME})
    )
    if not session.reuse_all():
        with session.display.shown():
            run_plain(session)
    artifact = session.outcomes[NAME].artifact
    if as_json:
        print(json.dumps({"artifact": artifact.id, **read_results(artifact)}, indent=2))
    else:
        print_evaluation(f"evaluation {artifact.id}", read_results(artifact), stdout())


def _like(workspace: Workspace, reference: str) -> EvaluateStage:
    """The stage that repeats an evaluation, with its data and settings."""
    artifact = workspace.resolve(reference)
    if artifact.kind != "evaluation":
        raise ConfigError(
            f"--like {reference}: {artifact.id} is of kind {artifact.kind}. See: cupola artifacts --kind evaluation"
        )
    kinds = {row.kind: f"{ARTIFACT}{row.digest}" for row in workspace.registry.parents(artifact.digest)}
    settings = {name: artifact.manifest.config[name] for name in DECIDE if name in artifact.manifest.config}
    return EvaluateStage(tokens=kinds["tokens"], conversations=kinds.get("conversations"), **settings)


def _as_before(workspace: Workspace, checkpoints: Sequence[Artifact]) -> EvaluateStage:
    known = evaluations(workspace)
    before = next(filter(None, (newest(known, artifact.digest) for artifact in checkpoints)), None)
    if before:
        return _like(workspace, before.digest)
    tokens, conversations = (next(_of_kind(workspace, checkpoints, kind), None) for kind in ("tokens", "conversations"))
    if tokens is None:
        raise ConfigError(
            f"{checkpoints[0].id} has no tokens in its lineage and was never evaluated, so there is no data to "
            "evaluate on. Name an evaluation with --like ID. See: cupola artifacts --kind evaluation"
        )
    return EvaluateStage(tokens=tokens, conversations=conversations)


def _of_kind(workspace: Workspace, checkpoints: Sequence[Artifact], kind: str) -> Iterator[Any]:
    for artifact in checkpoints:
        for row in workspace.registry.ancestors(artifact.digest):
            if row.kind == kind:
                yield f"{ARTIFACT}{row.digest}"
