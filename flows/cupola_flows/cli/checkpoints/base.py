"""`cupola checkpoint`: verify, export, import, restore, generate, score."""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cupola_flows.cli.options import Reference, WorkspaceOption, open_workspace
from cupola_flows.execution.optimizer_state import restore
from cupola_flows.terminal.text import visible
from cupola_platform.aliases import check_alias
from cupola_platform.artifacts import Artifact, verify
from cupola_platform.errors import BY_NAME, ConfigError, CupolaError, StageFailedError

TemplateDateOption = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d"],
        metavar="DAY",
        help="Today's date for the chat template. Default: the date that the checkpoint was trained with.",
    ),
]

app = typer.Typer(
    help="Work with checkpoints: Hugging Face import and export, generation, evaluation, merging, pruning.",
    epilog="Example: cupola checkpoint export champion --to ./champion-hf",
    no_args_is_help=True,
)


@app.command("verify", epilog="Example: cupola checkpoint verify champion")
def verify_command(reference: Reference, workspace: WorkspaceOption = None) -> None:
    """Verify the digest of every file of an artifact."""
    artifact = verify(open_workspace(workspace).resolve(reference).path)
    print(f"{artifact.id} is intact: {len(artifact.manifest.files)} files, {artifact.manifest.size:,} bytes.")


@app.command("export", epilog="Example: cupola checkpoint export champion --to ./champion-hf")
def export_command(
    reference: Reference,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Output folder, new or empty.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Export an adapter for PEFT's PeftModel.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Export a checkpoint to a Hugging Face folder, or an adapter to a PEFT folder.

    transformers' AutoModelForCausalLM and AutoTokenizer load the folder. It
    holds config.json, generation_config.json, safetensors files of 5 GB, the
    tokenizer and a model card. An imported model is exported bit for bit. One
    process exports checkpoints of any layout, a tensor at a time.
    """
    artifact = resolve_checkpoint(
        reference, workspace, kinds=["adapter"] if adapter else ["checkpoint", "reward_model"]
    )
    check_empty(to)
    convert("export", "--checkpoint", str(artifact.path), "--to", str(to), *(["--adapter"] if adapter else []))
    print(f"Exported {artifact.id} to {to}.")


@app.command("import", epilog="Example: cupola checkpoint import --from ./Qwen2-0.5B --alias qwen")
def import_command(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="A Hugging Face folder with safetensors.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the checkpoint to this folder instead of publishing it.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="Alias for the artifact; recipes refer to it as artifact:ALIAS.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Import a Hugging Face folder as a checkpoint, into the workspace or to a folder.

    Supports the model families in docs/families.md, and their reward models
    with one label. Weights keep their precision bit for bit. Tensors that are
    missing, unknown, not finite or of the wrong shape are refused by name.
    Pickled weights are never loaded.
    """
    check_alias(alias)
    if not source.is_dir():
        raise ConfigError(f"--from {source}: no such folder. Give a folder with config.json and safetensors files.")
    if to:
        if alias:
            raise ConfigError(f"--alias {alias} with --to: only published artifacts can have an alias. Leave one out.")
        check_empty(to)
        convert("import", "--from", str(source), "--to", str(to))
        print(f"Imported {source.name} to {to}.")
        return
    ws = open_workspace(workspace)
    with TemporaryDirectory(dir=ws.folder("work")) as scratch:
        folder = Path(scratch) / "checkpoint"
        convert("import", "--from", str(source), "--to", str(folder))
        scalar = json.loads((folder / "model.json").read_text()).get("head") == "scalar"
        kind = "reward_model" if scalar else "checkpoint"
        artifact = ws.publish(folder, kind=kind, stage="import", config={"source": source.name})
    if alias:
        ws.registry.set_alias(alias, artifact.digest, f"Imported from {source.name}.")
    print(f"Imported {artifact.id}. Use it in a recipe as artifact:{alias or artifact.id}.")


@app.command("restore", epilog="Example: cupola checkpoint restore champion --to ./job")
def restore_command(
    reference: Reference,
    to: Annotated[Path, typer.Option(metavar="JOB", help="The folder of a training job.")],
    workspace: WorkspaceOption = None,
) -> None:
    """Put a checkpoint and its optimizer state together for a job to resume.

    Writes JOB/checkpoints/step_N as the training job saved it, with hard links
    where the file system has them. A job with this output folder, the same
    model and the same schedule resumes from there.
    """
    ws = open_workspace(workspace)
    folder = restore(ws, ws.resolve(reference), to)
    print(f"Restored {folder}.")


@app.command("generate", epilog="Example: cupola checkpoint generate champion --prompt 'def main():'")
def generate_command(
    reference: Reference,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    chat: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Conversation to respond to: JSON with messages and tools."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of new tokens.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="T", help="Sampling temperature; 0 for greedy decoding.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Sampling seed; the same seed gives the same text.")] = 0,
    template_date: TemplateDateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Continue a text, or respond to a conversation.

    --prompt is continued without a chat template. --chat is rendered with the
    checkpoint's chat template and the conversation's tools, as in training.

    Imported models stop at the tokens in their generation_config.json, and
    greedy decoding matches transformers. Other models stop at their
    tokenizer's control tokens. Generation also stops at the model's maximum
    sequence length; a prompt that leaves no room is refused.
    """
    if (prompt is None) == (chat is None):
        raise ConfigError("generate needs either --prompt or --chat. Give exactly one of them.")
    artifact = resolve_checkpoint(reference, workspace)
    arguments = ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature), "--seed", str(seed)]
    source = ["--prompt", prompt] if prompt is not None else ["--chat", str(chat)]
    arguments = [*source, *arguments, *_template_date(template_date)]
    text = convert("generate", "--checkpoint", str(artifact.path), *arguments)
    print(visible(text) if sys.stdout.isatty() else text, end="")  # files get the text unescaped


@app.command("score", epilog="Example: cupola checkpoint score my-reward --file chats.jsonl --json")
def score_command(
    reference: Reference,
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="Conversations as JSON Lines; the last response of each is scored.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    template_date: TemplateDateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Score the last response of each conversation with a reward model, best first.

    Conversations are rendered with the checkpoint's chat template and their
    tools, as in training.
    """
    artifact = resolve_checkpoint(reference, workspace, kinds=["reward_model"])
    arguments = ["--file", str(file), *_template_date(template_date)]
    rows = json.loads(convert("score", "--checkpoint", str(artifact.path), *arguments))
    if json_:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(visible(f"{row['reward']:10.4f}  {row['id']}  {' '.join(row['response'].split())[:80]}"))


def _template_date(day: datetime | None) -> list[str]:
    return ["--template-date", day.date().isoformat()] if day else []


def check_empty(to: Path) -> None:
    """Refuse a folder that is not empty."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to}: not empty. Give a new or empty folder.")


def resolve_checkpoint(reference: str, workspace: Path | None, *, kinds: Sequence[str] = ("checkpoint",)) -> Artifact:
    """The checkpoint, adapter or reward model for a reference, with every digest verified."""
    artifact = open_workspace(workspace).resolve(reference)
    kind = "adapter" if artifact.kind == "checkpoint" and artifact.manifest.config.get("adapter") else artifact.kind
    if kind not in kinds:
        other = {"adapter": " Export it with --adapter, or merge it: cupola checkpoint merge-adapter"}.get(kind, "")
        raise ConfigError(
            f"{artifact.id} is of kind {kind}, not {kinds[0]}.{other or f' See: cupola artifacts --kind {kinds[0]}'}"
        )
    return verify(artifact.path)


def convert(*arguments: str) -> str:
    """Run a trainer command in another process, which loads torch, and return its output."""
    command: Sequence[str] = [sys.executable, "-m", "cupola_trainer", *arguments]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no error output"]
        raise _error_of(done.returncode)(lines[-1] if done.returncode == 2 else "\n".join(lines[-15:]))
    return done.stdout


def _error_of(code: int) -> type[CupolaError]:
    return BY_NAME["ConfigError"] if code == 2 else StageFailedError
