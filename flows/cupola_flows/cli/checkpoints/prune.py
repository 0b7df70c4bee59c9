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
    layers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of layers to keep; the least important go.")
    ] = None,
    drop_layers: Annotated[
        str | None, typer.Option(metavar="I,I,...", help="Layers to drop, counted from 0. Needs no --tokens.")
    ] = None,
    hidden_size: Annotated[int | None, _size("Residual stream channels to keep.")] = None,
    num_attention_heads: Annotated[int | None, _size("Query heads to keep, equally many per group.")] = None,
    num_query_groups: Annotated[int | None, _size("Key-value heads to keep, with their query heads.")] = None,
    ffn_hidden_size: Annotated[int | None, _size("Units of each dense FFN to keep.")] = None,
    num_experts: Annotated[int | None, _size("Routed experts to keep per layer.")] = None,
    expert_ffn_hidden_size: Annotated[int | None, _size("Units of each routed expert to keep.")] = None,
    shared_expert_ffn_hidden_size: Annotated[int | None, _size("Units of the shared expert to keep.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="ID", help="Tokens whose held-out text measures importance.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum held-out tokens to measure on.")] = 65_536,
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens per sequence of held-out text.")] = 512,
    to: ToOption = None,
    alias: AliasOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Prune a checkpoint to a smaller one for further training, removing the least important parts.

    Give the target sizes; sizes that are not given stay unchanged. Importance
    is measured in one pass over the held-out text of --tokens, which
    --drop-layers does not need.
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
        raise ConfigError(
            "--tokens is missing: importance is measured on held-out text. Give the id of a tokens artifact."
        )
    parent = resolve_checkpoint(reference, workspace)
    text = open_workspace(workspace).resolve(tokens) if tokens else None
    if text and text.kind != "tokens":
        raise ConfigError(f"--tokens {tokens} is of kind {text.kind}, not tokens. See: cupola artifacts --kind tokens")

    def job(output: Path) -> PruneJob:
        return prune_job(stage, parent, text, output=output, seed=0)

    make(job, stage.kind, stage.model_dump(mode="json"), [parent, *([text] if text else [])], to, alias, workspace)
