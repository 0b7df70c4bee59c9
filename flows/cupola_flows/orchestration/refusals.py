"""What a submitted run may ask of the worker: Cupola's own flow, and nothing else."""

from typing import Any

ENTRYPOINT = "cupola_flows.orchestration.flows.lifecycle"
"""The one flow that the worker runs."""
NAMES_NOTHING: tuple[Any, ...] = (None, "", ".", [], {})


def refusal(deployment: Any, flow_run: Any) -> str | None:
    """What a flow run or its deployment asks for and the worker does not do; None when there is nothing."""
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
