"""`cupola checkpoint merge` and `merge-adapter`: new checkpoints from existing ones, without a recipe."""

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
    Path | None, typer.Option(metavar="DIR", help="Write the checkpoint to this folder instead of publishing it.")
]
AliasOption = Annotated[str | None, typer.Option(help="Alias for the artifact; recipes refer to it as artifact:ALIAS.")]
AnyStage = TypeVar("AnyStage", bound=Stage)
EXAMPLE = "Example: cupola checkpoint merge sft-a sft-b --method ties --base pretrained --alias both"


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    app.command("merge", epilog=EXAMPLE)(merge_command)
    app.command("merge-adapter", epilog="Example: cupola checkpoint merge-adapter 3f2a --alias tuned")(adapter_command)


def merge_command(
    references: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Two or more checkpoints, or reward models.")
    ],
    method: Annotated[str, typer.Option(help="average, slerp, ties or dare.")] = "average",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="One weight per checkpoint; only their proportions matter.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="ID", help="The checkpoint that all of them were trained from.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of each task vector that ties and dare keep. Default: 0.2.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Scale of the merged task vector in ties and dare.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of dare's masks.")] = 0,
    to: ToOption = None,
    alias: AliasOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge checkpoints or reward models of the same architecture.

    average: weighted mean.
    slerp: spherical interpolation of each tensor, or of the task vectors
    (model minus base) with --base.
    ties: keep the largest elements of each task vector, elect signs, and
    average the elements that agree. Needs --base.
    dare: keep a random share of each task vector, rescaled. Needs --base.
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
    reference: Annotated[str, typer.Argument(metavar="ID", help="An adapter, trained by a stage with `lora`.")],
    base: Annotated[
        str | None, typer.Option(metavar="ID", help="The adapter's base, if the workspace does not have it.")
    ] = None,
    to: ToOption = None,
    alias: AliasOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge an adapter into the checkpoint that it was trained on."""
    adapter = resolve_checkpoint(reference, workspace, kinds=["adapter"])
    described = json.loads((adapter.path / "training.json").read_bytes())["adapter"]
    parent = resolve_checkpoint(base or described["base"], workspace)

    def job(output: Path) -> MergeAdapterJob:
        return MergeAdapterJob(output=output, parent=parent.path, adapter=adapter.path)

    make(job, "merge-adapter", described, [parent, adapter], to, alias, workspace)


def stage_of(kind: type[AnyStage], **settings: Any) -> AnyStage:
    """The stage with a command's options as settings, so that the rules for both are the same."""
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ConfigError(one_line(error, kind)) from None


def kind_of(checkpoint: Artifact) -> str:
    """The kind of artifact that merging this checkpoint gives."""
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
    """Run a job in its own process, and publish its result or write it to a folder."""
    if to and alias:
        raise ConfigError(f"--alias {alias} with --to: only published artifacts can have an alias. Leave one out.")
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
    print(f"Published {artifact.id}. Use it in a recipe as artifact:{alias or artifact.id}.")


def _run(job: AnyJob) -> Path:
    """Run a job in a process without torchrun, which keeps torch out of this one. Returns its result folder."""
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
