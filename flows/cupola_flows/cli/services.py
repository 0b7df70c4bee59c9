"""Commands about servers and this machine: up, down, deploy, submit, doctor."""

import json
from typing import Annotated

import typer

from cupola_flows.cli.options import JsonOption, SetOption, WorkspaceOption, open_workspace, print_rows, settings_of
from cupola_flows.orchestration.deployments import deploy as register_deployment
from cupola_flows.orchestration.deployments import list_recipes
from cupola_flows.orchestration.deployments import submit as submit_run
from cupola_flows.servers import services
from cupola_flows.servers.doctor import examine
from cupola_platform.security import credential
from cupola_platform.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: cupola up")(up)
    app.command(epilog="Example: cupola down")(down)
    app.command(epilog="Example: cupola deploy tiny")(deploy)
    app.command(epilog="Example: cupola submit tiny --set stages.pretrain.steps=200")(submit)
    app.command(epilog="Example: cupola doctor")(doctor)


def up(
    show_credential: Annotated[
        bool, typer.Option("--show-credential", help="Print what the servers' pages ask for.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Start Prefect's server and a worker, MLflow and the console on this machine; what runs already is left alone."""
    settings = open_workspace(workspace).settings
    running = services.up(settings)
    rows = [{"service": each.name, "url": each.url.removesuffix("/api"), "pid": each.pid} for each in running]
    print_rows(rows, as_json=as_json, empty="")
    if not as_json:
        print(_how_to_sign_in(settings, show_credential))
        print("End them with: cupola down")


def _how_to_sign_in(settings: Settings, show: bool) -> str:
    secret = credential.read(settings.home)
    if not show or secret is None:
        return (
            f"Sign in as {credential.USER}; the password: cupola up --show-credential, or "
            f"{settings.home / credential.FILE}"
        )
    whole, password = secret.get_secret_value(), credential.password(secret)
    return f"Sign in as {credential.USER} with the password {password} (Prefect's page: {whole})"


def down(workspace: WorkspaceOption = None) -> None:
    """Cancel the runs that the servers of `cupola up` carry, then end the servers."""
    runs, ended = services.down(settings_of(workspace))
    for run in runs:
        print(f"Cancelled the run {run}; what is finished is kept, and the same command goes on from there.")
    print(f"Ended {', '.join(ended)}." if ended else "Nothing was running.")


def deploy(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Default: the shipped ones.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Register recipes with the running Prefect server: parameters, schedule, work pool."""
    settings = settings_of(workspace)
    for recipe in recipes or [shipped.name for shipped in list_recipes()]:
        print(f"Deployed {register_deployment(recipe, settings)}. Start it with: cupola submit {recipe}")


def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A deployed recipe: its name or file.")],
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(metavar="STAGE,...", help="Run these stages only.")] = "",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Start a deployed recipe; the worker of `cupola up` carries it out."""
    names = [name for name in only.split(",") if name]
    run = submit_run(recipe, overrides or [], names, settings=settings_of(workspace))
    print(json.dumps({"flow_run_id": run}) if as_json else f"Submitted: flow run {run}. Follow it with: cupola runs")


def doctor(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what this machine has and lacks."""
    rows = examine(settings_of(workspace))
    print_rows(rows, as_json=as_json, empty="")
    if any(row["state"] == "missing" for row in rows):
        raise typer.Exit(1)
