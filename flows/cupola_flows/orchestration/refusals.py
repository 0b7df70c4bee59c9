"""Checks that a submitted run asks the worker for nothing but Cupola's flow."""

from typing import Any

ENTRYPOINT = "cupola_flows.orchestration.flows.lifecycle"
"""The only flow that the worker runs."""
NAMES_NOTHING: tuple[Any, ...] = (None, "", ".", [], {})


def refusal(deployment: Any, flow_run: Any) -> str | None:
    """Why the worker refuses a flow run or its deployment; None if it does not."""
    if deployment is None:
        return "it belongs to no deployment"
    if deployment.entrypoint != ENTRYPOINT:
        return f"its deployment's entry point is {deployment.entrypoint}"
    for thing, name in (
        (deployment, "pull_steps"),
        (deployment, "path"),
        (deployment, "job_variables"),
        (flow_run, "job_variables"),
    ):
        if getattr(thing, name) not in NAMES_NOTHING:
            return f"its {'run' if thing is flow_run else 'deployment'} has {name}"
    return None
