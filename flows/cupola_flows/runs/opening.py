"""Opens a session: loads and validates a recipe, ready to run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from cupola_flows.recipe.loading import load_recipe
from cupola_flows.recipe.schema import Recipe, on_cluster, select
from cupola_flows.recipe.validation import validate
from cupola_flows.runs.session import ONLY, Session
from cupola_flows.terminal.display import Display
from cupola_platform.errors import ConfigError
from cupola_platform.workspace import Workspace


def open_session(
    recipe: str,
    overrides: Sequence[str],
    only: Sequence[str],
    workspace: Path | None,
    display: Callable[[Mapping[str, str]], Display],
    run_on: str | None = None,
) -> Session:
    """Load and validate a recipe, ready to run.

    Args:
        run_on: cluster for all jobs, whatever the recipe says; None for what it says.

    Raises:
        CupolaError: an error that can be detected before the run starts.
    """
    loaded = load_recipe(recipe, overrides)
    return new_session(on_cluster(loaded, run_on) if run_on else loaded, overrides, only, workspace, display)


def reopen(run: str, workspace: Path | None, display: Callable[[Mapping[str, str]], Display]) -> Session:
    """The session of an earlier run of a recipe, from what the registry keeps of it.

    Args:
        run: id of the recipe's run, or of one of its stages' runs.

    Raises:
        NotFoundError: no such run.
        ConfigError: it is complete, or its recipe does not hold in this version.
    """
    registry = Workspace.open(workspace).registry
    row = registry.run(run)
    whole = registry.run(row.parent_id) if row.parent_id else row
    if whole.status in ("completed", "reused"):
        raise ConfigError(f"Run {run} is {whole.label}: there is nothing to attach to.")
    kept = dict(whole.config)
    only = kept.pop(ONLY, ())
    try:
        recipe = Recipe.model_validate(kept)
    except ValidationError as error:
        raise ConfigError(f"Run {run} comes from another version of Cupola: {error.errors()[0]['msg']}.") from None
    return new_session(recipe, [], only, workspace, display)


def new_session(
    recipe: Recipe,
    overrides: Sequence[str],
    only: Sequence[str],
    workspace: Path | None,
    display: Callable[[Mapping[str, str]], Display],
) -> Session:
    """The same for a recipe that is already loaded. Raises CupolaError."""
    try:
        names = select(recipe, only)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    opened = Workspace.open(workspace)
    opened.registry.sweep_lost_runs()
    session = Session(
        workspace=opened,
        recipe=recipe,
        names=names,
        overrides=overrides,
        display=display({name: recipe.stages[name].kind for name in names}),
    )
    validate(recipe, opened.settings, names)
    return session
