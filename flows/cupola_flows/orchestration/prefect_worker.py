"""Prefect's process worker, restricted to Cupola's flow (see `worker`). Importing this imports Prefect."""

import tempfile
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.abc
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._starter_engine import EngineCommandStarter
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from cupola_flows.orchestration.refusals import ENTRYPOINT, refusal
from cupola_flows.servers.work_pool import WORKER_TYPE
from cupola_platform.errors import CupolaError


class RefusedError(CupolaError):
    """A flow run asks for something that the worker refuses."""


class CupolaJobConfiguration(ProcessJobConfiguration):
    """Prefect's defaults, with nothing from a deployment, a flow run or the work pool's template."""

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: Any,
        *,
        client: Any,
        work_pool: Any,
        worker_name: str,
        worker_id: Any = None,
        deployment: Any = None,
    ) -> Self:
        """The configuration of a run. Raises RefusedError, which the flow run's page shows as the crash's cause."""
        if deployment is None and flow_run.deployment_id:
            deployment = await client.read_deployment(flow_run.deployment_id)
        reason = refusal(deployment, flow_run)
        if reason:
            raise RefusedError(f"This worker runs only {ENTRYPOINT}, and {reason}.")
        configuration = cls()
        configuration.prepare_for_flow_run(
            flow_run, deployment, await client.read_flow(flow_run.flow_id), work_pool, worker_name, worker_id
        )
        return configuration


class CupolaWorker(ProcessWorker):
    """Runs submitted lifecycles in separate processes."""

    type = WORKER_TYPE
    job_configuration = CupolaJobConfiguration
    _description = "Runs only Cupola's lifecycle, in a process on the worker's machine."
    _display_name = "Cupola"

    async def run(
        self,
        flow_run: Any,
        configuration: ProcessJobConfiguration,
        task_status: "anyio.abc.TaskStatus[int] | None" = None,
    ) -> ProcessWorkerResult:
        """Run like the process worker, but without reading entry point and hooks from the deployment, which may have
        changed since it was checked."""
        with tempfile.TemporaryDirectory(prefix="cupola-run-") as folder:
            async with FlowRunExecutorContext() as context:
                starter = EngineCommandStarter(
                    entrypoint=ENTRYPOINT,
                    cwd=Path(folder),
                    env=configuration.env,
                    control_channel=context.control_channel,
                )
                executor = context.create_executor(flow_run, starter, resolve_flow=_lifecycle, propose_submitting=False)
                result: FlowRunExecutionResult | None = None

                async def execute(*, task_status: "anyio.abc.TaskStatus[Any]" = anyio.TASK_STATUS_IGNORED) -> None:
                    nonlocal result
                    result = await executor.submit(task_status=task_status)

                async with anyio.create_task_group() as group:
                    handle = await group.start(execute)
                    if task_status is not None:
                        task_status.started(handle.pid)
        if result is None or result.status_code is None:
            raise RuntimeError("The flow run's process could not be started.")
        # The executor has reported a crash to the server. A second report some seconds later would end the run that
        # the sweeper may have rescheduled by then.
        return ProcessWorkerResult(status_code=0, identifier=str(result.handle.pid))


async def _lifecycle(_run: Any) -> Any:
    from cupola_flows.orchestration.flows import lifecycle

    return lifecycle
