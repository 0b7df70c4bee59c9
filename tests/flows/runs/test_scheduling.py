"""When each stage of a run starts: after its inputs, side by side where there is room, and never twice."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import JobResult, run_once
from cupola_flows.runs.opening import open_session
from cupola_flows.runs.scheduling import Schedule, run_stages, stages_before
from cupola_flows.runs.session import Outcome, Session
from cupola_flows.runs.work_folders import locked
from cupola_flows.stages.base import Taken
from cupola_flows.stages.checkpoints.upcycle import UpcycleStage
from cupola_flows.terminal.display import PlainDisplay
from cupola_platform.artifacts import Artifact, seal
from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import CancelledError, StageFailedError
from cupola_trainer.config import MergeJob

CONVERSATIONS = "{kind: conversations, tasks: [{name: gcd, count: 8}], heldout_per_task: 2}"
PRETRAIN = (
    "{{kind: pretrain, tokens: prepare, steps: 1, layout: {{dp: {dp}}}, batch: {{sequence_length: 64, "
    "micro_batch_size: 1, global_batch_size: {dp}}}, model: {{hidden_size: 32, num_layers: 2, "
    "num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 64, max_position_embeddings: 64}}}}"
)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """A function that opens a session of these stages on a machine with room for some ranks."""

    def make(stages: dict[str, str], ranks: int) -> Session:
        monkeypatch.setenv("CUPOLA_MAX_PROCESSES", str(ranks))
        lines = "\n".join(f"  {name}: {stage}" for name, stage in stages.items())
        (tmp_path / "r.yaml").write_text(f"name: r\nstages:\n{lines}\n")
        return open_session(
            str(tmp_path / "r.yaml"), [], [], tmp_path / "home", lambda of: PlainDisplay(of, said.append)
        )

    said: list[str] = []
    make.said = said  # type: ignore[attr-defined]
    return make


class Stages:
    """Stands in for the stages' work: each runs until the test ends it."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.threads: dict[str, threading.Thread] = {}
        self.end = {name: threading.Event() for name in "abcde"}
        self.fails: dict[str, Exception] = {}

    def __call__(self, name: str) -> None:
        self.started.append(name)
        self.threads[name] = threading.current_thread()
        try:
            while not self.end[name].wait(0.02):
                pass
            if name in self.fails:
                raise self.fails[name]
        finally:
            self.ended.append(name)


@pytest.fixture
def stages() -> Stages:
    return Stages()


def in_background(session: Session, stages: Stages) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            run_stages(session, stages)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def signal_once_two_run(stages: Stages, number: signal.Signals) -> None:
    def send() -> None:
        eventually(lambda: len(stages.started) == 2)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_independent_stages_run_side_by_side_as_far_as_there_is_room(
    session: Callable[..., Session], stages: Stages
) -> None:
    running, raised = in_background(session(dict.fromkeys("abc", CONVERSATIONS), 2), stages)
    eventually(lambda: len(stages.started) == 2)
    assert set(stages.started) == {"a", "b"}
    time.sleep(0.2)
    assert "c" not in stages.started
    stages.end["b"].set()
    eventually(lambda: "c" in stages.started)
    stages.end["a"].set()
    stages.end["c"].set()
    running.join()
    assert raised == []


def test_on_a_machine_with_room_for_one_the_stages_run_in_order_in_the_main_thread(
    session: Callable[..., Session], stages: Stages
) -> None:
    for event in stages.end.values():
        event.set()
    run_stages(session(dict.fromkeys("abc", CONVERSATIONS), 1), stages)
    assert stages.started == ["a", "b", "c"]
    assert set(stages.threads.values()) == {threading.main_thread()}


def test_a_stage_that_fails_lets_its_sibling_finish_and_nothing_new_starts(
    session: Callable[..., Session], stages: Stages
) -> None:
    stages.fails["a"] = StageFailedError("stage a: no luck")
    opened = session(dict.fromkeys("abc", CONVERSATIONS), 2)
    running, raised = in_background(opened, stages)
    eventually(lambda: len(stages.started) == 2)
    stages.end["a"].set()
    eventually(lambda: "a failed. What runs beside it goes on (b); nothing new starts." in session.said)  # type: ignore[attr-defined]
    assert running.is_alive()
    stages.end["b"].set()
    running.join()
    assert [str(error) for error in raised] == ["stage a: no luck"]
    assert "c" not in stages.started


def test_a_signal_interrupts_every_stage_and_waits_for_them(session: Callable[..., Session], stages: Stages) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupted)
    signal_once_two_run(stages, signal.SIGUSR1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stages(session(dict.fromkeys("abc", CONVERSATIONS), 2), stages)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert set(stages.ended) == {"a", "b"}
    assert not any(thread.is_alive() for name, thread in stages.threads.items())


def test_every_interrupted_stage_is_recorded_as_cancelled(session: Callable[..., Session], stages: Stages) -> None:
    opened = session(dict.fromkeys("ab", CONVERSATIONS), 2)
    original = opened._make

    def slow(name: str, *rest: object) -> object:
        with opened.records.of_stage(name, opened.workspace.root, None):
            stages(name)
        return original(name, *rest)  # type: ignore[arg-type]

    opened._make = slow  # type: ignore[method-assign, assignment]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        signal_once_two_run(stages, signal.SIGINT)
        with pytest.raises(CancelledError), opened.recorded(None):
            run_stages(opened, opened.execute)
    finally:
        signal.signal(signal.SIGINT, before)
    rows = {row.stage: row.status for row in opened.workspace.registry.runs()}
    assert rows == {"": "cancelled", "a": "cancelled", "b": "cancelled"}
    assert isinstance(opened.error, CancelledError)


def test_a_small_stage_does_not_overtake_a_large_one_that_waits_for_room(
    session: Callable[..., Session], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("some text\n" * 50)
    prepare = f"{{corpus: {{executor: {{workers: 1}}, sources: {{t: {{type: files, path: {tmp_path}/text.txt}}}}}}}}"
    opened = session(
        {"prepare": prepare, "a": PRETRAIN.format(dp=1), "b": PRETRAIN.format(dp=2), "c": PRETRAIN.format(dp=1)}, 2
    )
    schedule = Schedule(opened, lambda _: None)
    assert schedule.startable() == ["prepare"]
    schedule.waiting.remove("prepare")
    assert schedule.startable() == ["a"]
    schedule.waiting.remove("a")
    schedule.running["a"] = threading.current_thread()
    assert schedule.startable() == []
    del schedule.running["a"]
    assert schedule.startable() == ["b"]


def test_a_promotion_keeps_its_place_and_unselected_stages_pass_the_order_on(
    session: Callable[..., Session], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("some text\n" * 50)
    prepare = f"{{corpus: {{sources: {{t: {{type: files, path: {tmp_path}/text.txt}}}}}}}}"
    stages = {"prepare": prepare, "a": PRETRAIN.format(dp=1), "evaluate": "{checkpoints: [a]}"}
    recipe = session(stages | {"promote": "{checkpoints: [a]}", "late": CONVERSATIONS}, 2).recipe
    before = stages_before(recipe, ["prepare", "evaluate", "promote", "late"])
    assert before == {
        "prepare": set(),
        "evaluate": {"prepare"},
        "promote": {"prepare", "evaluate"},
        "late": {"prepare", "promote"},
    }


def test_a_stage_that_another_command_runs_is_refused_or_waited_for(session: Callable[..., Session]) -> None:
    first, second, third = (session({"a": CONVERSATIONS}, 2) for _ in range(3))
    third.waits = True
    folder = first.workspace.work_folder(first.fingerprint("a", first.inputs("a")))
    with locked(folder, "a", print):
        with pytest.raises(StageFailedError, match="stage a is being run by another process"):
            second.execute("a")
        waiting = threading.Thread(target=third.execute, args=("a",))
        waiting.start()
        eventually(lambda: any("Waiting for it." in line for line in session.said))  # type: ignore[attr-defined]
    waiting.join()
    assert third.outcomes["a"].state == "completed"
    first.execute("a")
    assert [row.status for row in third.workspace.registry.runs()] == ["reused", "completed"]


@pytest.mark.parametrize("shared", [True, False])
def test_what_only_the_store_has_of_an_input_is_fetched_unless_the_stages_nodes_do_it(
    session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, s3: Any, tmp_path: Path, shared: bool
) -> None:
    cluster = {"launcher": "slurm", "nodes": 1, "ranks_per_node": 1, "shared": shared}
    for name, value in {
        "STORE_URL": f"s3://{s3.bucket}/{tmp_path.name}",
        "S3_ENDPOINT_URL": s3.endpoint_url,
        "CLUSTERS": json.dumps({"there": cluster}),
    }.items():
        monkeypatch.setenv(f"CUPOLA_{name}", value)
    stages = {
        "prepare": f"{{corpus: {{sources: {{text: {{type: files, path: {__file__}}}}}}}}}",
        "a": PRETRAIN.format(dp=1),
        "b": "{kind: upcycle, parent: a, run_on: there, moe: {num_experts: 2, top_k: 1, expert_ffn_hidden_size: 64}}",
    }
    opened = session(stages, 1)
    objects = opened.workspace.store.objects("jobs/a")  # type: ignore[attr-defined]
    objects.write("state/rank_00000.bin", b"weights")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    seal(folder, kind="checkpoint", elsewhere={"state/rank_00000.bin": (7, digest_bytes(b"weights"))})
    Elsewhere(at="jobs/a").write(folder)
    checkpoint = opened.workspace.publish(folder, kind="checkpoint", fingerprint="a" * 64)
    assert not (checkpoint.path / "state").exists()
    opened.outcomes["a"] = Outcome("completed", checkpoint, 0.0)

    def run(stage: UpcycleStage, ctx: StageContext, taken: Taken) -> Artifact:
        assert (taken.one("parent").path / "state/rank_00000.bin").exists() == shared
        raise StageFailedError("as far as the test goes")

    monkeypatch.setattr(UpcycleStage, "run", run)
    with pytest.raises(StageFailedError, match="as far as the test goes"):
        opened.execute("b")
    assert opened.workspace.find("a" * 64, partly=True) == checkpoint
    assert (checkpoint.path / "state").exists() == shared
    found = opened.workspace.find("a" * 64)
    assert found is not None
    assert (found.path / "state/rank_00000.bin").read_bytes() == b"weights"


def test_what_two_stages_share_is_made_once(session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = session({"a": CONVERSATIONS}, 2)
    opened.execute("a")
    tokens = opened.outcomes["a"].artifact
    jobs: list[str] = []

    def slow_job(ctx: StageContext, _job: object) -> JobResult:
        jobs.append(ctx.name)
        time.sleep(1)
        folder = ctx.empty("made")
        (folder / "reference").write_text("made")
        return JobResult(folder, {})

    monkeypatch.setattr("cupola_flows.execution.jobs.run_job", slow_job)  # the job itself needs a checkpoint
    made: list[str] = []

    def stage(name: str) -> None:
        ctx = StageContext(
            workspace=opened.workspace, recipe="r", name=name, gives="checkpoint", config={}, seed=0, fingerprint=name,
            run_id="", folder=opened.workspace.work_folder(name), display=opened.display,
        )  # fmt: skip
        job = MergeJob(output=ctx.folder / "job", checkpoints=(tokens.path, tokens.path))
        made.append(run_once(ctx, job, kind="reference", config={"of": 1}, parents=[tokens]).digest)

    threads = [threading.Thread(target=stage, args=(name,)) for name in ("b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 1
    assert len(made) == 2
    assert made[0] == made[1]
    other = {"b": "c", "c": "b"}[jobs[0]]
    assert f"{other}: waiting for the reference that another stage makes." in session.said  # type: ignore[attr-defined]
