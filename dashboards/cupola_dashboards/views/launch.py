"""Launch: choose a recipe, set its main settings, and start it through its deployment."""

from typing import Any

import streamlit as st

from cupola_dashboards.queries import settings
from cupola_dashboards.queries.workspace import prefect_page
from cupola_dashboards.text import guarded, plain
from cupola_flows.orchestration import deployments
from cupola_flows.recipe.loading import Recipe, load_recipe
from cupola_flows.stages.training import TrainStage
from cupola_platform.errors import CupolaError


@guarded
def page() -> None:
    """Show one recipe's form, validated while typing, and the button."""
    st.title("Launch", anchor=False)
    recipes = {recipe.name: recipe for recipe in deployments.list_recipes()}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Recipe", list(recipes), key="recipe", width=280)
    recipe = load_recipe(name)
    schedule = f" It is scheduled at `{recipe.schedule}` (UTC)." if recipe.schedule else ""
    st.markdown(f"{plain(recipe.description)}{schedule}")
    left, right = st.columns([3, 2], gap="large")
    with left:
        overrides = _form(name, recipe)
        only = st.multiselect("Only these stages", list(recipe.stages), placeholder="All of them", key=f"only-{name}")
    with right:
        _stages(recipe, only)
        _start(name, overrides, only)


def _form(name: str, recipe: Recipe) -> list[str]:
    """Show the form, and return `KEY=VALUE` for each value that differs from the recipe."""
    st.subheader("Parameters", anchor=False)
    seed = st.number_input("Seed", min_value=0, value=recipe.seed, step=1, key=f"seed-{name}", width=200)
    chosen = [f"seed={seed}"] if seed != recipe.seed else []
    steps = {stage: held.steps for stage, held in recipe.stages.items() if isinstance(held, TrainStage) and held.steps}
    cells = st.columns(max(2, len(steps)))
    for cell, (stage, count) in zip(cells, steps.items(), strict=False):
        chosen += _number(cell, f"{stage}: steps", f"stages.{stage}.steps", count, name)
    with st.expander("All other settings"):
        before = settings.recipe_settings(recipe)
        after = st.data_editor(
            before,
            key=f"settings-{name}",
            hide_index=True,
            height=340,
            disabled=["setting", "meaning"],
            column_config={
                "setting": st.column_config.TextColumn("Setting", width="medium"),
                "value": st.column_config.TextColumn("Value (YAML)", width="small"),
                "meaning": st.column_config.TextColumn("Meaning", width="large"),
            },
        )
    more = st.text_area(
        "Overrides, one per line",
        placeholder="stages.pretrain.optimizer.lr=1e-3",
        key=f"overrides-{name}",
        help="As in `cupola submit --set`: KEY=VALUE, with the value in YAML. They override the fields above.",
    )
    return [*chosen, *settings.overrides(before, after), *(line.strip() for line in more.splitlines() if line.strip())]


def _number(cell: Any, label: str, key: str, value: int, name: str) -> list[str]:
    given = cell.number_input(label, min_value=1, value=value, step=10, key=f"{key}-{name}")
    return [f"{key}={given}"] if given != value else []


def _stages(recipe: Recipe, only: list[str]) -> None:
    st.subheader("What will happen", anchor=False)
    chosen = [stage for stage in recipe.order() if not only or stage in only]
    st.markdown(" ".join(f":gray-badge[{plain(stage)}]" for stage in chosen))
    st.caption("Stages that already ran with the same settings and inputs are reused.")


def _start(name: str, overrides: list[str], only: list[str]) -> None:
    """Validate the form, show errors as the command line would, and start the run."""
    command = " ".join(
        [
            "cupola submit",
            name,
            *(f"--set {each}" for each in overrides),
            *([f"--only {','.join(only)}"] if only else []),
        ]
    )
    st.code(command, language=None, wrap_lines=True)
    try:
        load_recipe(name, overrides)
    except CupolaError as error:
        st.error(plain(error))
        return
    if st.button("Start", type="primary", key="start"):
        _submit(name, overrides, only)


def _submit(name: str, overrides: list[str], only: list[str]) -> None:
    try:
        started = deployments.submit(name, overrides, only)
    except CupolaError as error:
        st.error(plain(error))
        st.caption("`cupola up` starts the servers and a worker; `cupola deploy` registers the recipe with them.")
        return
    st.success(f"Started as flow run {started[:8]}. It appears under **Runs** when the worker picks it up.")
    if address := prefect_page(started):
        st.link_button("Open in Prefect", address)
