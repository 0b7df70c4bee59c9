"""`cupola checkpoint merge`: checkpoints made out of others, without a recipe."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from cupola_flows.cli.checkpoints.base import check_empty, resolve_checkpoint
from cupola_flows.cli.options import WorkspaceOption, open_workspace
from cupola_flows.execution.jobs import error_of, read_result
from cupola_flows.recipe.messages import one_line
from cupola_flows.stages.base import Stage
from cupola_flows.stages.checkpoints.merge import MergeStage, merge_job
from cupola_platform.aliases import check_alias
from cupola_platform.artifacts import Artifact, seal
from cupola_platform.errors import ConfigError, StageFailedError
from cupola_trainer.config import AnyJob, MergeAdapterJob, write_job

ToOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the checkpoint there, and do not publish it.")
]
AliasOption = Annotated[str | None, typer.Option(help="Name it, so that recipes can say artifact:NAME.")]
AnyStage = TypeVar("AnyStage", bound=Stage)
EXAMPLE = "Example: cupola checkpoint merge sft-a sft-b --method ties --base pretrained --alias both"


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    app.command("merge", epilog=EXAMPLE)(merge_command)
    app.command("merge-adapter", epilog="Example: cupola checkpoint merge-adapter 3f2a --alias tuned")(adapter_command)


def merge_command(
    references: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Two checkpoints or more, or reward models.")
    ],
    method: Annotated[str, typer.Option(help="average, slerp, ties or dare.")] = "average",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="One for each; only their proportions matter.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="ID", help="What all of them were trained from.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of what was learned that ties and dare keep. Default 0.2.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Factor on the merged task vector of ties and dare.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of dare's masks.")] = 0,
    to: ToOption = None,
    alias: AliasOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge checkpoints of one architecture, or reward models, into one.

    average: the weighted mean.
    slerp: each tensor on the arc between the models, or between their task
    vectors (a model less its base) with --base.
    ties: of each task vector the largest elements, signs elected, the mean of
    those that agree; needs --base.
    dare: of each task vector a random share, rescaled; needs --base.
    """
    stage = stage_of(
        MergeStage,
        checkpoints=references,
        base=base,
        method=method,
        weights=weights.split(",") if weights else None,
        density=density,
        scale=scale,
        seed=seed,
    )
    kinds = ("checkpoint", "reward_model")
    artifacts = [resolve_checkpoint(reference, workspace, kinds=kinds) for reference in references]
    common = resolve_checkpoint(base, workspace) if base else None
    parents = [*artifacts, *([common] if common else [])]
    make(
        lambda output: merge_job(stage, artifacts, common, output=output, seed=seed),
        stage.kind,
        stage.model_dump(mode="json"),
        parents,
        to,
        alias,
        workspace,
        kind=kind_of(artifacts[0]),
    )


def adapter_command(
    reference: Annotated[str, typer.Argument(metavar="ID", help="An adapter: what a stage with `lora` trained.")],
    base: Annotated[
        str | None, typer.Option(metavar="ID", help="Its base, where the workspace does not know it.")
    ] = None,
    to: ToOption = None,
    alias: AliasOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Fold an adapter into the checkpoint that it was trained on."""
    adapter = resolve_checkpoint(reference, workspace, kinds=["adapter"])
    described = json.loads((adapter.path / "training.json").read_bytes())["adapter"]
    parent = resolve_checkpoint(base or described["base"], workspace)

    def job(output: Path) -> MergeAdapterJob:
        return MergeAdapterJob(output=output, parent=parent.path, adapter=adapter.path)

    make(job, "merge-adapter", described, [parent, adapter], to, alias, workspace)


def stage_of(kind: type[AnyStage], **settings: Any) -> AnyStage:
    """The recipe's stage that says the same as a command's options: one set of rules for both."""
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ConfigError(one_line(error, kind)) from None


def kind_of(checkpoint: Artifact) -> str:
    """What is made of checkpoints like this one."""
    head = json.loads((checkpoint.path / "model.json").read_bytes()).get("head")
    return "reward_model" if head == "scalar" else "checkpoint"


def make(
    job: Callable[[Path], AnyJob],
    name: str,
    config: Mapping[str, Any],
    parents: Sequence[Artifact],
    to: Path | None,
    alias: str | None,
    workspace: Path | None,
    kind: str = "checkpoint",
) -> None:
    """Run a job in one process of its own, and publish what it made, or write it to a folder."""
    if to and alias:
        raise ConfigError(f"--alias {alias} with --to: a folder that is not published has no alias. Leave one out.")
    check_alias(alias)
    ws = open_workspace(workspace)
    if to:
        check_empty(to)
        to.resolve().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.resolve().parent if to else ws.folder("work")) as scratch:
        made = _run(job(Path(scratch)))
        if to:
            digests = [parent.digest for parent in parents]
            artifact = seal(made, kind=kind, parents=digests, stage=name, config=config)
            if to.exists():
                to.rmdir()
            made.rename(to)
            print(f"Wrote {artifact.id} to {to}.")
            return
        artifact = ws.publish(made, kind=kind, parents=parents, stage=name, config=config)
    if alias:
        ws.registry.set_alias(alias, artifact.digest, f"Made by cupola checkpoint {name}.")
    print(f"Made {artifact.id}. Use it in a recipe as artifact:{alias or artifact.id}.")


def _run(job: AnyJob) -> Path:
    """The folder that a job made, in a process without torchrun: torch stays out of this one."""
    path = job.output / "job.json"
    write_job(job, path)
    command = [sys.executable, "-m", "cupola_trainer", str(path)]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if error := error_of(job):
        raise error
    result = read_result(job)
    if done.returncode or result is None:
        raise StageFailedError("\n".join([line for line in done.stderr.splitlines() if line.strip()][-15:]))
    return result.folder
