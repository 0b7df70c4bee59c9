"""`cupola checkpoint prune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cupola_flows.cli.checkpoints.base import resolve_checkpoint
from cupola_flows.cli.checkpoints.merge import AliasOption, ToOption, make, stage_of
from cupola_flows.cli.options import Reference, WorkspaceOption, open_workspace
from cupola_flows.stages.checkpoints.prune import PruneStage, prune_job
from cupola_platform.errors import ConfigError
from cupola_trainer.config import PruneJob

EXAMPLE = "Example: cupola checkpoint prune big --layers 12 --ffn-hidden-size 2048 --tokens corpus --alias small"


def _size(what: str) -> Any:
    return typer.Option(metavar="N", min=1, help=what)


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    app.command("prune", epilog=EXAMPLE)(prune_command)


def prune_command(
    reference: Reference,
    layers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Keep those that change most.")] = None,
    drop_layers: Annotated[
        str | None, typer.Option(metavar="I,I,...", help="Drop these, from 0: no tokens needed.")
    ] = None,
    hidden_size: Annotated[int | None, _size("Channels of the residual stream to keep.")] = None,
    num_attention_heads: Annotated[int | None, _size("Query heads to keep, as many in each group.")] = None,
    num_query_groups: Annotated[int | None, _size("Key-value heads to keep, each with its query heads.")] = None,
    ffn_hidden_size: Annotated[int | None, _size("Units of a dense FFN to keep, in each layer.")] = None,
    num_experts: Annotated[int | None, _size("Routed experts to keep, in each layer.")] = None,
    expert_ffn_hidden_size: Annotated[int | None, _size("Units of each routed expert to keep.")] = None,
    shared_expert_ffn_hidden_size: Annotated[int | None, _size("Units of the shared expert to keep.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="ID", help="Tokens whose held-out shards show what matters.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens to look at.")] = 65_536,
    sequence_length: Annotated[int, typer.Option(min=8, help="Most tokens of one sequence of them.")] = 512,
    to: ToOption = None,
    alias: AliasOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make a smaller checkpoint of a larger one, to go on training: what matters least is left out.

    Give the sizes to reach; what is left out stays as it is. What matters is
    measured in one pass over the held-out text of the artifact that --tokens
    names; layers that --drop-layers names go without.
    """
    sizes = {
        "num_layers": layers,
        "drop_layers": drop_layers.split(",") if drop_layers else (),
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "num_query_groups": num_query_groups,
        "ffn_hidden_size": ffn_hidden_size,
        "num_experts": num_experts,
        "expert_ffn_hidden_size": expert_ffn_hidden_size,
        "shared_expert_ffn_hidden_size": shared_expert_ffn_hidden_size,
    }
    stage = stage_of(
        PruneStage, parent=reference, tokens=tokens, to=sizes, max_tokens=max_tokens, sequence_length=sequence_length
    )
    if stage.to.by_importance and tokens is None:
        raise ConfigError("--tokens: what matters is measured on held-out text. Give a tokens artifact's id.")
    parent = resolve_checkpoint(reference, workspace)
    text = open_workspace(workspace).resolve(tokens) if tokens else None
    if text and text.kind != "tokens":
        raise ConfigError(f"--tokens {tokens}: of kind {text.kind}. See: cupola artifacts --kind tokens")

    def job(output: Path) -> PruneJob:
        return prune_job(stage, parent, text, output=output, seed=0)

    make(job, stage.kind, stage.model_dump(mode="json"), [parent, *([text] if text else [])], to, alias, workspace)
