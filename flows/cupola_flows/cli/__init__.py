"""The `cupola` command."""

import os
import sys

import typer

from cupola_flows.cli import (
    artifacts,
    checkpoint,
    curves,
    differences,
    experiments,
    layouts,
    long_context,
    making,
    presets,
    pruning,
    run,
    services,
    tokens,
)
from cupola_flows.services import NO_TELEMETRY
from cupola_platform.errors import CupolaError, refusal

app = typer.Typer(
    name="cupola",
    help="From raw text to an aligned, evaluated language model, with the lineage of every checkpoint.",
    epilog="Example: cupola run tiny",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
run.register(app)
artifacts.register(app)
layouts.register(app)
curves.register(app)
experiments.register(app)
presets.register(app)
services.register(app)
differences.register(checkpoint.app)
long_context.register(checkpoint.app)
making.register(checkpoint.app)
pruning.register(checkpoint.app)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(tokens.app, name="tokens")


def main() -> None:
    """Entry point: a mistake of the user is one line and an exit status, never a traceback."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except CupolaError as error:
        sys.stdout.flush()
        print(f"cupola: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("cupola: cancelled", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `cupola artifacts | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if (line := refusal(error)) is None:
            raise
        sys.stdout.flush()
        print(f"cupola: error: {line}", file=sys.stderr)
        sys.exit(CupolaError.exit_code)
