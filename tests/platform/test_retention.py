"""What is kept, and that an artifact in use or being made again is never removed."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from cupola_platform.artifacts import Artifact, verify
from cupola_platform.errors import NotFoundError, StoreError
from cupola_platform.workspace import Workspace

MakeFolder = Callable[..., Path]
MONTH = timedelta(days=30)


@pytest.fixture
def make(ws: Workspace, make_folder: MakeFolder) -> Callable[..., Artifact]:
    """A function that publishes an artifact of a kind, made from others, under a name that is also its content."""

    def publish(name: str, kind: str, *parents: Artifact, **options: Any) -> Artifact:
        folder = make_folder(name, {"content": name})
        return ws.publish(folder, kind=kind, parents=parents, stage=name, **options)

    return publish


def unused_for(ws: Workspace, days: float, *artifacts: Artifact) -> None:
    """Make artifacts look as if they had been made and last used so many days ago; all without `artifacts`."""
    then = datetime.now(UTC) - timedelta(days=days)
    listed = [artifact.digest for artifact in artifacts] or sorted(ws.registry.digests())
    engine = create_engine(ws.settings.registry)
    with engine.begin() as connection:
        for digest in listed:
            change = text("UPDATE artifact SET used = :then, created = :then WHERE digest = :digest")
            connection.execute(change, {"then": then.replace(tzinfo=None), "digest": digest})
    engine.dispose()


def unneeded(ws: Workspace, older_than: timedelta = MONTH) -> set[str]:
    return {each.stage for each in ws.registry.retention.unneeded(datetime.now(UTC) - older_than)}


def test_aliases_annotations_recent_use_and_their_ancestors_are_kept(
    ws: Workspace, make: Callable[..., Artifact]
) -> None:
    tokens = make("tokens", "tokens")
    base = make("base", "checkpoint", tokens)
    champion, loser = make("champion", "checkpoint", base), make("loser", "checkpoint", base)
    make("optimizer of champion", "optimizer", champion)
    make("evaluation of both", "evaluation", champion, loser)
    make("evaluation of loser", "evaluation", loser)
    make("promotion", "promotion", champion, loser)
    pairs = make("pairs", "preferences", make("sampled", "checkpoint"))
    other = make("other tokens", "tokens")
    recent = make("recent", "checkpoint", other)
    unused_for(ws, 31)
    unused_for(ws, 29, recent)
    ws.registry.set_alias("champion", champion.digest, "It won.")
    ws.registry.annotate(pairs.digest, "1", "ann", "chosen")
    assert unneeded(ws) == {"loser", "optimizer of champion", "evaluation of loser"}
    assert unneeded(ws, timedelta(days=28)) == {
        "loser", "optimizer of champion", "evaluation of loser", "recent", "other tokens",
    }  # fmt: skip


def test_looking_an_artifact_up_counts_as_use(ws: Workspace, make: Callable[..., Artifact]) -> None:
    names = ("by fingerprint", "by id", "by alias before", "never")
    made = {name: make(name, "checkpoint", fingerprint=f"{number}" * 64) for number, name in enumerate(names)}
    ws.registry.set_alias("now", made["by alias before"].digest, "for a while")
    unused_for(ws, 31)
    assert ws.find("0" * 64) is not None
    assert ws.resolve(made["by id"].id)
    assert ws.resolve("now")
    ws.registry.set_alias("now", made["by id"].digest, "moved")
    assert unneeded(ws) == {"never"}


def test_everything_that_a_run_in_progress_may_have_looked_up_is_kept(
    ws: Workspace, make: Callable[..., Artifact]
) -> None:
    make("long ago", "checkpoint")
    unused_for(ws, 31)
    read = make("read by the run", "checkpoint")
    run = ws.registry.start_run("recipe", "sft")
    unused_for(ws, 0.5, read)
    assert unneeded(ws, timedelta(hours=1)) == {"long ago"}
    result = make("result", "checkpoint")
    unused_for(ws, 31, read, result)
    ws.registry.finish_run(run, "completed", result.digest)
    assert unneeded(ws) == {"long ago", "read by the run"}, "a result counts from the end of its run"


def collect(ws: Workspace) -> set[str]:
    return {each.stage for each in ws.registry.retention.collect(datetime.now(UTC) - MONTH)}


def test_what_was_collected_is_no_longer_found_and_is_not_adopted_again(
    ws: Workspace, make: Callable[..., Artifact]
) -> None:
    made = make("old", "checkpoint", fingerprint="a" * 64)
    child = make("child", "evaluation", made)
    unused_for(ws, 31, made)
    unused_for(ws, 31, child)
    make("new", "checkpoint")
    assert collect(ws) == {"old", "child"}
    assert collect(ws) == set()
    assert ws.find("a" * 64) is None
    assert ws.adopt() == 0
    with pytest.raises(NotFoundError):
        ws.resolve(made.id)
    assert ws.use(made.digest) is False
    assert verify(made.path), "its files are removed afterwards"
    assert sorted(each.size for each in ws.registry.retention.pending()) == [3, 5]


def test_a_stage_that_makes_the_same_content_again_keeps_it(
    ws: Workspace, make: Callable[..., Artifact], tmp_path: Path
) -> None:
    made = make("old", "checkpoint", fingerprint="a" * 64)
    unused_for(ws, 31)
    assert collect(ws) == {"old"}
    shutil.rmtree(tmp_path / "old", ignore_errors=True)
    again = make("old", "checkpoint", fingerprint="a" * 64)  # between the decision and the removal
    with ws.registry.retention.removing(made.digest) as stands:
        assert not stands
    assert ws.registry.retention.pending() == []
    assert ws.find("a" * 64) == again
    assert collect(ws) == set(), "it is in use now"


def test_a_removal_that_fails_is_still_pending(ws: Workspace, make: Callable[..., Artifact]) -> None:
    made = make("old", "checkpoint")
    unused_for(ws, 31)
    collect(ws)
    with pytest.raises(StoreError, match="refused"), ws.registry.retention.removing(made.digest):
        raise StoreError("refused")
    assert [each.digest for each in ws.registry.retention.pending()] == [made.digest]
    with ws.registry.retention.removing(made.digest) as stands:
        assert stands
        ws.store.withdraw(made.digest)
    ws.store.sweep()
    assert ws.registry.retention.pending() == []
    assert ws.store.digests() == set()
    assert not made.path.exists()
