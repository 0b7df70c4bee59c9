"""`cupola checkpoint long-context`."""

import json
import subprocess
import sys
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from cupola_flows.cli.options import JsonOption, Reference, WorkspaceOption, open_workspace, print_rows
from cupola_platform.artifacts import Artifact, verify
from cupola_platform.errors import ConfigError, StageFailedError
from cupola_platform.workspace import LineageNode, Workspace
from cupola_trainer.config import LongContextConfig, ModelConfig
from cupola_trainer.config.model.long_context import method
from cupola_trainer.evaluation.long_context_page import page, summary

CONFIG = TypeAdapter(LongContextConfig)
MODEL = TypeAdapter(ModelConfig)
MEASURING = "Measuring"


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    epilog = "Example: cupola checkpoint long-context champion --method none,yarn,dca --lengths 256,512,1024"
    app.command("long-context", epilog=epilog)(measure)


def measure(
    reference: Reference,
    lengths: Annotated[
        str, typer.Option(metavar="N,...", help="Context lengths in tokens; losses are measured up to the longest.")
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--method", metavar="NAME,...", help="none, linear, yarn, ntk, dca, logn, windows, or combined as dca+yarn."
        ),
    ] = "none,yarn,ntk,dca,logn",
    trained: Annotated[
        int | None, typer.Option(help="Training length in tokens. Default: that of the checkpoint's stage.")
    ] = None,
    max_heldout_tokens: Annotated[int, typer.Option(min=64, help="Held-out tokens to measure losses on.")] = 65_536,
    needles: Annotated[int, typer.Option(min=1, help="Needles per length and depth.")] = 8,
    tokens: Annotated[
        str, typer.Option(metavar="ID", help="Tokens whose held-out text to use. Default: those it was trained on.")
    ] = "",
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the charts to this HTML file.")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure loss by position and needle retrieval beyond the trained length, with each extension method."""
    opened = open_workspace(workspace)
    artifact = opened.resolve(reference)
    if artifact.kind != "checkpoint":
        raise ConfigError(
            f"{artifact.id} is of kind {artifact.kind}, not a checkpoint. See: cupola artifacts --kind checkpoint"
        )
    if to and not to.parent.is_dir():
        raise ConfigError(f"--to {to}: folder {to.parent} does not exist. Create it, or choose another path.")
    text = _tokens(opened, artifact, tokens)
    config = _config(
        {
            "methods": methods.split(","),
            "lengths": lengths.split(","),
            "trained_length": trained or _trained(artifact),
            "needles": needles,
        }
    )
    _check_methods(artifact, config)
    with TemporaryDirectory(dir=opened.folder("work")) as scratch:
        settings = Path(scratch) / "config.json"
        settings.write_bytes(CONFIG.dump_json(config))
        measured = _run(verify(artifact.path), text, settings, max_heldout_tokens, quiet=as_json)
    if to:
        to.write_text(page({artifact.id: measured}), encoding="utf-8")
    if as_json:
        print(json.dumps(measured, indent=2))
        return
    print_rows(summary(measured["methods"]), as_json=False, empty="")
    print(
        f"Trained at {measured['trained_length']:,} tokens, measured up to {measured['longest']:,}."
        + (f" Charts: {to}" if to else "")
    )


def _config(values: dict[str, Any]) -> LongContextConfig:
    try:
        return CONFIG.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "options"
        raise ConfigError(f"--{where}: {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}.") from None


def _check_methods(checkpoint: Artifact, config: LongContextConfig) -> None:
    """Refuse methods that the checkpoint's positions do not allow, before torch is loaded."""
    model = MODEL.validate_json((checkpoint.path / "model.json").read_bytes())
    trained = config.trained_length or model.max_position_embeddings
    for name in config.methods:
        method(model, name, trained=trained, longest=max(config.lengths))


def _trained(artifact: Artifact) -> int | None:
    """Sequence length of the stage that trained the checkpoint, if any."""
    length = artifact.manifest.config.get("batch", {}).get("sequence_length")
    return int(length) if length else None


def _tokens(workspace: Workspace, artifact: Artifact, reference: str) -> Artifact:
    if reference:
        tokens = workspace.resolve(reference)
        if tokens.kind != "tokens":
            raise ConfigError(
                f"--tokens {reference}: {tokens.id} is of kind {tokens.kind}. See: cupola artifacts --kind tokens"
            )
        return tokens
    nearest = _nearest(workspace.lineage(artifact))
    if nearest is None:
        raise ConfigError(
            f"{artifact.id} has no tokens in its lineage. Give --tokens ID. See: cupola artifacts --kind tokens"
        )
    return workspace.resolve(nearest.digest)


def _nearest(node: LineageNode) -> LineageNode | None:
    if node.kind == "tokens":
        return node
    return next((tokens for parent in node.parents if (tokens := _nearest(parent))), None)


def _run(checkpoint: Artifact, tokens: Artifact, settings: Path, heldout: int, *, quiet: bool) -> dict[str, Any]:
    """Measure in another process, which loads torch and prints each method to stderr as it starts it."""
    results = settings.with_name("results.json")
    command = [
        sys.executable,
        "-m",
        "cupola_trainer",
        "long-context",
        *("--checkpoint", checkpoint.path),
        *("--tokens", tokens.path),
        *("--config", settings),
        *("--heldout", heldout),
        *("--results", results),
    ]
    console, said = Console(stderr=True), deque[str](maxlen=15)
    with (
        subprocess.Popen(
            [str(each) for each in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        ) as running,
        nullcontext() if quiet else console.status("Loading the checkpoint") as status,
    ):  # fmt: skip
        assert running.stderr is not None
        for line in filter(None, map(str.strip, running.stderr)):
            said.append(line)
            if status and line.startswith(MEASURING):
                status.update(line)
    if running.returncode:
        raise ConfigError(said[-1]) if running.returncode == 2 else StageFailedError("\n".join(said))
    measured: dict[str, Any] = json.loads(results.read_text())
    return measured
