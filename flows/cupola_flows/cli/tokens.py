"""Commands for prepared tokens: where a token comes from, and how well the vocabulary compresses."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cupola_flows.cli.options import JsonOption, Reference, WorkspaceOption, open_workspace, print_rows
from cupola_platform.artifacts import Artifact
from cupola_platform.corpus.tokenizer.compression import compression as measure
from cupola_platform.corpus.tokenizer.locating import locate as find
from cupola_platform.errors import ConfigError

app = typer.Typer(
    help="Inspect prepared tokens: where a token comes from, how well the vocabulary compresses.",
    epilog="Example: cupola tokens compression 3f2a90",
    no_args_is_help=True,
)


@app.command(epilog="Example: cupola tokens locate 3f2a90 --shard train-web --offset 123456")
def locate(
    reference: Reference,
    shard: Annotated[str, typer.Option(metavar="NAME", help="Split and source, such as train-web.")],
    offset: Annotated[int, typer.Option(metavar="N", help="Position of the token in the shard, from 0.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show the document, file and text that a token of a shard comes from."""
    place = find(_tokens(reference, workspace).path, shard, offset)
    if as_json:
        print(json.dumps(asdict(place), indent=2, ensure_ascii=False))
        return
    rows = {key: value for key, value in asdict(place).items() if key not in {"before", "text", "after"}}
    print_rows([{"field": key, "value": value} for key, value in rows.items()], as_json=False, empty="")
    print(f"\n{place.before!r} >>>{place.text!r}<<< {place.after!r}")


@app.command(epilog="Example: cupola tokens compression 3f2a90 --against qwen --against cl100k=cl100k_base.tiktoken")
def compression(
    reference: Reference,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VOCABULARY", help="qwen, cl100k=FILE, or a .tiktoken or tokenizer.json file. Repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Bytes per token on held-out text, by language, compared with other vocabularies."""
    measured = measure(_tokens(reference, workspace).path, against or [])
    rows = [
        {"language": of.language, "bytes": of.bytes, **{name: round(ratio, 3) for name, ratio in of.ratios.items()}}
        for of in measured
    ]
    print_rows(rows, as_json=as_json, empty="The artifact has no held-out text.")


def _tokens(reference: str, workspace: WorkspaceOption) -> Artifact:
    artifact = open_workspace(workspace).resolve(reference)
    if artifact.manifest.kind != "tokens":
        raise ConfigError(
            f"{reference} is of kind {artifact.manifest.kind}, not tokens. See: cupola artifacts --kind tokens"
        )
    return artifact
