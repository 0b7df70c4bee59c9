import json
from pathlib import Path

import pytest

from cupola_platform.tracking.metrics_tail import Cursor, Point, read_points


def step(number: int, time: float = 0.0, **metrics: object) -> str:
    return json.dumps({"event": "step", "time": time or 1000.0 + number, "step": number, **metrics}) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_numbers_become_points_with_their_own_times_and_steps(path: Path) -> None:
    path.write_text(
        '{"event":"start","time":1,"kind":"train","step":0,"steps":9,"world_size":2,"parameters":5}\n'
        '{"event":"step","time":2.5,"step":1,"loss":3.5,"note":"x","flag":true,"tokens@second":7,"nested":{"a":1}}\n'
        '{"event":"end","time":3,"step":1,"status":"completed"}\n'
    )
    points, cursor = read_points(path, Cursor(), 1000)
    assert points == [Point("loss", 3.5, 2500, 1), Point("tokens_second", 7.0, 2500, 1)]
    assert cursor.offset == path.stat().st_size
    assert read_points(path, cursor, 1000) == ([], cursor)


def test_a_line_is_read_once_it_is_complete(path: Path) -> None:
    path.write_text(step(1, loss=1.0) + step(2, loss=2.0)[:-5])
    points, cursor = read_points(path, Cursor(), 1000)
    assert [point.step for point in points] == [1]
    path.write_text(step(1, loss=1.0) + step(2, loss=2.0))
    assert [point.step for point in read_points(path, cursor, 1000)[0]] == [2]


def test_a_line_left_by_a_killed_writer_is_skipped(path: Path) -> None:
    path.write_text(step(1, loss=1.0) + '{"event": "st' + step(2, loss=2.0) + step(3, loss=3.0))
    assert [point.step for point in read_points(path, Cursor(), 1000)[0]] == [1, 3]


def test_at_most_the_requested_points_are_read_and_none_is_skipped(path: Path) -> None:
    path.write_text("".join(step(number, loss=1.0, lr=2.0, grad_norm=3.0) for number in range(10)))
    cursor, sizes, steps = Cursor(), [], []
    while True:
        points, behind = read_points(path, cursor, 7)
        if behind == cursor:
            break
        sizes.append(len(points))
        steps += [point.step for point in points]
        cursor = behind
    assert max(sizes) == 6
    assert steps == [number for number in range(10) for _ in range(3)]


def test_a_resumed_job_truncates_the_file_and_its_steps_are_read_once(path: Path) -> None:
    path.write_text("".join(step(number, loss=float(number)) for number in range(1, 9)))
    _, cursor = read_points(path, Cursor(), 1000)
    kept = "".join(step(number, loss=float(number)) for number in range(1, 5))
    path.write_text(kept + step(5, time=9999.0, loss=5.0))  # shorter than the cursor
    points, cursor = read_points(path, cursor, 1000)
    assert points == []
    again = "".join(step(number, time=9999.0 + number, loss=float(number)) for number in range(5, 12))
    path.write_text(kept + again)  # longer than before, with different bytes
    assert [point.step for point in read_points(path, cursor, 1000)[0]] == [9, 10, 11]


def rolled_back(to: int, time: float) -> str:
    return (
        json.dumps({"event": "rollback", "time": time, "step": to, "from_step": 7, "reason": "the loss jumped"}) + "\n"
    )


def losses(points: list[Point]) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in points if point.key == "loss"]


def test_steps_repeated_after_a_rollback_are_read_once_more(path: Path) -> None:
    path.write_text("".join(step(number, loss=float(number)) for number in range(1, 8)))
    points, cursor = read_points(path, Cursor(), 1000)
    assert len(points) == 7
    kept = "".join(step(number, loss=float(number)) for number in range(1, 5))
    redone = kept + rolled_back(4, 2000.0)
    redone += "".join(step(number, time=2000.0 + number, loss=number / 2) for number in range(5, 9))
    path.write_text(redone)
    points, cursor = read_points(path, cursor, 1000)
    assert losses(points) == [(5, 2.5), (6, 3.0), (7, 3.5), (8, 4.0)]
    assert [point.timestamp for point in points] == [2_005_000, 2_006_000, 2_007_000, 2_008_000]
    path.write_text(redone + step(9, loss=4.5))
    points, cursor = read_points(path, cursor, 1000)
    assert losses(points) == [(9, 4.5)]

    lines = redone.splitlines(keepends=True)[:6]  # killed, and resumed at step 5: the rollback was already read
    path.write_text(
        "".join(lines) + "".join(step(number, time=3000.0 + number, loss=number / 2) for number in range(6, 11))
    )
    points, cursor = read_points(path, cursor, 3)
    while (more := read_points(path, cursor, 3))[1] != cursor:
        points, cursor = points + more[0], more[1]
    assert losses(points) == [(10, 5.0)]


def test_two_rollbacks_between_reads_are_read_once(path: Path) -> None:
    path.write_text("".join(step(number, loss=float(number)) for number in range(1, 8)))
    _, cursor = read_points(path, Cursor(), 1000)
    first = step(1, loss=1.0) + step(2, loss=2.0) + rolled_back(2, 2000.0) + step(3, time=2001.0, loss=0.3)
    path.write_text(first + rolled_back(1, 3000.0) + step(2, time=3001.0, loss=0.2))
    points, cursor = read_points(path, cursor, 1000)
    assert losses(points)[-1] == (2, 0.2)
    assert read_points(path, cursor, 1000)[0] == []
