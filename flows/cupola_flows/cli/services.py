"""Commands for the servers: up, down, deploy, submit."""

import json
from typing import Annotated

import typer

from cupola_flows.cli.options import JsonOption, SetOption, WorkspaceOption, open_workspace, print_rows, settings_of
from cupola_flows.orchestration.deployments import deploy as register_deployment
from cupola_flows.orchestration.deployments import list_recipes
from cupola_flows.orchestration.deployments import submit as submit_run
from cupola_flows.servers import services
from cupola_platform.security import credential
from cupola_platform.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: cupola up")(up)
    app.command(epilog="Example: cupola down")(down)
    app.command(epilog="Example: cupola deploy tiny")(deploy)
    app.command(epilog="Example: cupola submit tiny --set stages.pretrain.steps=200")(submit)


def up(
    show_credential: Annotated[
        bool, typer.Option("--show-credential", help="Print the password for the servers' pages.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Start Prefect, its worker, MLflow and the console on this machine. Running services are left alone."""
    settings = open_workspace(workspace).settings
    running = services.up(settings)
    rows = [{"service": each.name, "url": each.url.removesuffix("/api"), "pid": each.pid} for each in running]
    print_rows(rows, as_json=as_json, empty="")
    if not as_json:
        print(_how_to_sign_in(settings, show_credential))
        print("Stop them with: cupola down")


def _how_to_sign_in(settings: Settings, show: bool) -> str:
    secret = credential.read(settings.home)
    if not show or secret is None:
        return (
            f"Sign in as {credential.USER}. To see the password: cupola up --show-credential, or "
            f"{settings.home / credential.FILE}"
        )
    whole, password = secret.get_secret_value(), credential.password(secret)
    return f"Sign in as {credential.USER} with the password {password} (Prefect's page: {whole})"


def down(workspace: WorkspaceOption = None) -> None:
    """Cancel active runs and stop the servers that `cupola up` started."""
    runs, ended = services.down(settings_of(workspace))
    for run in runs:
        print(f"Cancelled run {run}. Finished work is kept. Run the same command to resume.")
    print(f"Stopped {', '.join(ended)}." if ended else "Nothing was running.")


def deploy(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to deploy. Default: all shipped recipes.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CLUSTER", help="Run them in pods of this Kubernetes cluster of cupola.toml."),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Deploy recipes to the running Prefect server, with their parameters, schedule and work pool."""
    settings = settings_of(workspace)
    for recipe in recipes or [shipped.name for shipped in list_recipes()]:
        print(f"Deployed {register_deployment(recipe, settings, on)}. Start it with: cupola submit {recipe}")


def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or file of a deployed recipe.")],
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(metavar="STAGE,...", help="Run only these stages.")] = "",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Submit a run of a deployed recipe to the worker that `cupola up` started."""
    names = [name for name in only.split(",") if name]
    run = submit_run(recipe, overrides or [], names, settings=settings_of(workspace))
    print(json.dumps({"flow_run_id": run}) if as_json else f"Submitted flow run {run}. Follow it with: cupola runs")
