"""The `cupola` command."""

import os
import sys
from typing import NoReturn

import typer

from cupola_flows.cli import (
    artifacts,
    clusters,
    collection,
    curves,
    experiments,
    jobs,
    layouts,
    presets,
    run,
    services,
    tokens,
    tracking,
)
from cupola_flows.cli.checkpoints import base as checkpoint
from cupola_flows.cli.checkpoints import differences, long_context
from cupola_flows.cli.checkpoints import evaluate as evaluating
from cupola_flows.cli.checkpoints import merge as merging
from cupola_flows.cli.checkpoints import plan as planning
from cupola_flows.cli.checkpoints import prune as pruning
from cupola_flows.servers.prefect_api import NO_TELEMETRY
from cupola_flows.terminal.text import visible
from cupola_platform.errors import CupolaError, refusal
from cupola_platform.security.urls import shown

app = typer.Typer(
    name="cupola",
    help="Train language models from raw text to alignment and evaluation, and trace the lineage of every checkpoint.",
    epilog="Example: cupola run tiny",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
run.register(app)
jobs.register(app)
artifacts.register(app)
layouts.register(app)
curves.register(app)
collection.register(app)
experiments.register(app)
presets.register(app)
services.register(app)
clusters.register(app)
differences.register(checkpoint.app)
planning.register(checkpoint.app)
evaluating.register(checkpoint.app)
long_context.register(checkpoint.app)
merging.register(checkpoint.app)
pruning.register(checkpoint.app)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(tokens.app, name="tokens")
app.add_typer(tracking.app, name="tracking")


def main() -> None:
    """Entry point. User errors print one line and set the exit status; they never show a traceback."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    try:
        sys.exit(app(standalone_mode=False))
    except CupolaError as error:
        _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        _refuse_arguments(error)
    except KeyboardInterrupt:
        print("cupola: cancelled", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `cupola artifacts | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if (line := refusal(error)) is None:
            raise
        _refuse(line, CupolaError.exit_code)


def _refuse_arguments(error: typer.TyperException) -> NoReturn:
    """Print Typer's error on one line instead of in a box; a group without a command has already printed its help."""
    line = " ".join(error.format_message().split())
    if not line:
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else app.info.name
    _refuse(f"{line if line.endswith(('.', '?')) else line + '.'} See: {command} --help", error.exit_code)


def _refuse(line: str, status: int) -> NoReturn:
    sys.stdout.flush()
    print(f"cupola: error: {visible(shown(line))}", file=sys.stderr)
    sys.exit(status)
