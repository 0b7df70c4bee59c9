"""`cupola checkpoint`: verify, export, import, generate, score. `making` has what makes new ones out of others."""

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
from cupola_flows.terminal.text import visible
from cupola_platform.aliases import check_alias
from cupola_platform.artifacts import Artifact, verify
from cupola_platform.errors import BY_NAME, ConfigError, CupolaError, StageFailedError

TemplateDateOption = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d"],
        metavar="DAY",
        help="What the chat template takes for today. Default: the date that the checkpoint was trained with.",
    ),
]

app = typer.Typer(
    help="Checkpoints: verify, export to and import from Hugging Face's format, generate, score, merge, prune.",
    epilog="Example: cupola checkpoint export champion --to ./champion-hf",
    no_args_is_help=True,
)


@app.command("verify", epilog="Example: cupola checkpoint verify champion")
def verify_command(reference: Reference, workspace: WorkspaceOption = None) -> None:
    """Check every file of an artifact against its digest."""
    artifact = verify(open_workspace(workspace).resolve(reference).path)
    print(f"{artifact.id} is whole: {len(artifact.manifest.files)} files, {artifact.manifest.size:,} bytes.")


@app.command("export", epilog="Example: cupola checkpoint export champion --to ./champion-hf")
def export_command(
    reference: Reference,
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="ID is an adapter: write it as PEFT's PeftModel loads it.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load, or PEFT.

    config.json, generation_config.json, safetensors in files of 5 GB, the
    tokenizer and a model card. What was imported goes out with the same bits.
    One process writes a checkpoint of any layout, a tensor at a time.
    """
    artifact = resolve_checkpoint(
        reference, workspace, kinds=["adapter"] if adapter else ["checkpoint", "reward_model"]
    )
    check_empty(to)
    convert("export", "--checkpoint", str(artifact.path), "--to", str(to), *(["--adapter"] if adapter else []))
    print(f"Exported {artifact.id} to {to}.")


@app.command("import", epilog="Example: cupola checkpoint import --from ./Qwen2-0.5B --alias qwen")
def import_command(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="A transformers folder with safetensors.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the checkpoint there, and do not publish it.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Name it, so that recipes can say artifact:NAME.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make a checkpoint of a transformers folder: an artifact, or a folder that commands and recipes take too.

    Models of the families in docs/families.md, and their reward models of one
    label; another family is refused, with the list of those that are known.
    Weights keep their precision bit for bit; a tensor that is missing, unknown,
    not finite or of another shape is refused by name, and pickled weights are
    never opened.
    """
    check_alias(alias)
    if not source.is_dir():
        raise ConfigError(f"--from {source}: no such folder. Give one with config.json and safetensors in it.")
    if to:
        if alias:
            raise ConfigError(f"--alias {alias} with --to: a folder that is not published has no alias. Leave one out.")
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


@app.command("generate", epilog="Example: cupola checkpoint generate champion --prompt 'def main():'")
def generate_command(
    reference: Reference,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    chat: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A conversation to answer, in place of a text: JSON with messages and tools."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens at most; fewer where the model ends the text.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="T", help="0: always the likeliest token. 1: as likely as the model says.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn: the same seed gives the same text.")] = 0,
    template_date: TemplateDateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Continue a text as it stands, or answer a conversation.

    Around a --prompt no chat template is put. A --chat is asked as in training:
    through the checkpoint's chat template, with its tools.

    An imported model ends where its generation_config.json says, and its
    greedy text is transformers' own; a model made here ends at its tokenizer's
    control tokens. Both end at the model's longest sequence; a prompt that
    leaves no room is refused.
    """
    if (prompt is None) == (chat is None):
        raise ConfigError("generate continues either a --prompt or a --chat: give one of them.")
    artifact = resolve_checkpoint(reference, workspace)
    arguments = ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature), "--seed", str(seed)]
    asked = ["--prompt", prompt] if prompt is not None else ["--chat", str(chat)]
    arguments = [*asked, *arguments, *_dated(template_date)]
    text = convert("generate", "--checkpoint", str(artifact.path), *arguments)
    print(visible(text) if sys.stdout.isatty() else text, end="")  # a file gets the model's own text


@app.command("score", epilog="Example: cupola checkpoint score my-reward --file chats.jsonl --json")
def score_command(
    reference: Reference,
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="Conversations, as JSON lines; the last response is scored.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="Rows of JSON.")] = False,
    template_date: TemplateDateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Say what a reward model gives each conversation's last response, best first.

    Conversations are read as in training: through the checkpoint's chat
    template, with their tools.
    """
    artifact = resolve_checkpoint(reference, workspace, kinds=["reward_model"])
    arguments = ["--file", str(file), *_dated(template_date)]
    rows = json.loads(convert("score", "--checkpoint", str(artifact.path), *arguments))
    if json_:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(visible(f"{row['reward']:10.4f}  {row['id']}  {' '.join(row['response'].split())[:80]}"))


def _dated(day: datetime | None) -> list[str]:
    return ["--template-date", day.date().isoformat()] if day else []


def check_empty(to: Path) -> None:
    """Refuse a folder that holds something."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to}: already holds something. Give a new or empty folder.")


def resolve_checkpoint(reference: str, workspace: Path | None, *, kinds: Sequence[str] = ("checkpoint",)) -> Artifact:
    """The checkpoint, adapter or reward model of that name, every byte verified."""
    artifact = open_workspace(workspace).resolve(reference)
    kind = "adapter" if artifact.kind == "checkpoint" and artifact.manifest.config.get("adapter") else artifact.kind
    if kind not in kinds:
        other = {"adapter": " Export it with --adapter, or fold it in: cupola checkpoint merge-adapter"}.get(kind, "")
        raise ConfigError(
            f"{artifact.id} is of kind {kind}, not {kinds[0]}.{other or f' See: cupola artifacts --kind {kinds[0]}'}"
        )
    return verify(artifact.path)


def convert(*arguments: str) -> str:
    """Run the trainer's own command, which loads torch, in another process; what it printed."""
    command: Sequence[str] = [sys.executable, "-m", "cupola_trainer", *arguments]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise _error_of(done.returncode)(lines[-1] if done.returncode == 2 else "\n".join(lines[-15:]))
    return done.stdout


def _error_of(code: int) -> type[CupolaError]:
    return BY_NAME["ConfigError"] if code == 2 else StageFailedError
