"""Text from an OpenAI-compatible endpoint: a real, scripted HTTP server that fails as real ones do."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from cupola_flows.orchestration.running import run_plain
from cupola_flows.runs.opening import open_session
from cupola_flows.stages.data.requests import mark_of
from cupola_flows.terminal.display import PlainDisplay
from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact
from cupola_platform.endpoint import Endpoint, EndpointConfig
from cupola_platform.errors import ConfigError, ServiceError
from cupola_platform.workspace import Workspace

Response = tuple[int, dict[str, str], Any]
ASK = [{"role": "user", "content": "2 + 2?"}]


def said(text: str, reason: str = "stop") -> Response:
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


class Server:
    """Sends scripted responses, and records the requests."""

    def __init__(self) -> None:
        self.script: list[Response] = []
        self.asked: list[tuple[str | None, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.headers.get("Authorization"), body))
                status, headers, response = (
                    outer.script.pop(0) if outer.script else said(body["messages"][-1]["content"])
                )
                data = response.encode() if isinstance(response, str) else json.dumps(response).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the client, in seconds, without waiting."""
    kept: list[float] = []
    monkeypatch.setattr("cupola_platform.json_service.time.sleep", kept.append)
    return kept


def asks(server: Server, retries: int = 3) -> Callable[[], Any]:
    endpoint = Endpoint(EndpointConfig(url=server.url, model="tiny", retries=retries, key_variable="THE_KEY"))
    return lambda: endpoint.complete(ASK, temperature=0.5, max_new_tokens=8, seed=3)


def test_a_response_tells_whether_the_model_finished_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    server.script = [said("4"), said("4 and", "length")]
    ask = asks(server)
    assert (ask().text, ask().finished) == ("4", False)
    key, body = server.asked[0]
    assert key == "Bearer secret"
    assert body == {"model": "tiny", "messages": ASK, "temperature": 0.5, "max_tokens": 8, "seed": 3}


def test_rate_limits_server_errors_and_invalid_responses_are_retried(server: Server, waits: list[float]) -> None:
    server.script = [(429, {"Retry-After": "7"}, "slow down"), (503, {}, "busy"), (200, {}, "no JSON"), said("4")]
    assert asks(server)().text == "4"
    assert waits == [7.0, 1.0, 2.0]


def test_a_refused_request_is_one_line_without_retries(server: Server, waits: list[float]) -> None:
    server.script = [(401, {}, "wrong\nkey")]
    with pytest.raises(ConfigError, match=r"refuses the request, status 401: wrong key$"):
        asks(server)()
    assert waits == []


def test_an_endpoint_that_never_responds_is_one_line_after_all_tries(server: Server, waits: list[float]) -> None:
    server.script = [(500, {}, "down")] * 3
    with pytest.raises(
        ServiceError, match=r"gave no response in 3 tries; the last: status 500: down\. Earlier responses are kept"
    ):
        asks(server, retries=2)()
    nobody = Endpoint(EndpointConfig(url="http://127.0.0.1:9/v1", model="tiny", retries=0))
    with pytest.raises(ServiceError, match=r"in 1 tries; the last: URLError"):
        nobody.complete(ASK, temperature=0, max_new_tokens=1, seed=0)


def test_responses_come_in_the_order_of_the_prompts(server: Server) -> None:
    endpoint = Endpoint(EndpointConfig(url=server.url, model="tiny", concurrency=3))
    prompts = [[{"role": "user", "content": f"question {n}"}] for n in range(12)]
    found = endpoint.map(prompts, temperature=0, max_new_tokens=4, seeds=range(12))
    assert [of.text for of in found] == [f"question {n}" for n in range(12)]


RECIPE = """
name: made
seed: 1
stages:
  synthesize:
    conversations: artifact:{artifact}
    endpoint: {{url: "{url}", model: tiny, retries: 0, concurrency: 2}}
    heldout_fraction: 0.2
    {more}
"""


def conversations(workspace: Workspace, folder: Path) -> Artifact:
    """Ten additions with their tasks, and with tests for responses in Python."""
    folder.mkdir()
    rows = [
        {
            "id": f"sum-{n}",
            "source": "sums",
            "messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}],
            "task": {"name": "chain_sum", "entry": {"question": "", "answer": str(n + 1), "metadata": {}}},
            "tests": f"assert answer == {n + 1}",
        }
        for n in range(10)
    ]
    for split in ("train", "heldout"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace.publish(folder, kind="conversations")


def made(server: Server, home: Path, more: str) -> Artifact:
    workspace = Workspace.open(home)
    given = conversations(workspace, home / "given")
    path = home / "made.yaml"
    path.write_text(RECIPE.format(artifact=given.id, url=server.url, more=more))
    session = open_session(str(path), [], [], home, PlainDisplay)
    run_plain(session)
    artifact = session.outcomes["synthesize"].artifact
    assert artifact.manifest.parents == (given.digest,)
    return artifact


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    lines = [*(artifact.path / "train.jsonl").open(), *(artifact.path / "heldout.jsonl").open()]
    return [json.loads(line) for line in lines]


class Solver(list[Response]):
    """Solves additions, except the given wrong ones; also marks, rewords, criticises and revises."""

    def __init__(self, server: Server, wrong: tuple[int, ...], form: str = "{}") -> None:
        super().__init__()
        self.server, self.wrong, self.form = server, wrong, form

    def __bool__(self) -> bool:
        return True

    def pop(self, _: Any = -1) -> Response:
        text = self.server.asked[-1][1]["messages"][-1]["content"]
        if text.startswith("Mark"):
            return said("Mark: 9" if "what comes after" in text else "2")
        if text.startswith("Principle") and "Critique" not in text:
            return said("It is curt.")
        if text.startswith("Principle"):
            return said("" if "Question:\n3 + 1" in text else f"Surely {text.split('Answer:')[1].split()[0]}")
        if text.startswith("Write"):
            return said(f"Tell me what comes after {text.split()[-3]}")
        n = int(text.split()[0])
        return said(self.form.format(0 if n in self.wrong else n + 1))


def test_responses_with_low_scores_are_dropped_and_the_rest_record_their_origin(server: Server, tmp_path: Path) -> None:
    server.script = Solver(server, wrong=(3, 4))
    artifact = made(server, tmp_path, "max_new_tokens: 8")
    rows = rows_of(artifact)
    assert {row["synthesis"]["of"] for row in rows} == {f"sum-{n}" for n in range(10)} - {"sum-3", "sum-4"}
    row = next(row for row in rows if row["synthesis"]["of"] == "sum-7")
    assert row["messages"][-1] == {"role": "assistant", "content": "8"}
    assert row["synthesis"] == {
        "of": "sum-7", "prompt": row["messages"][:-1], "model": "tiny", "scorer": "task", "score": 1.0,
    }  # fmt: skip
    report = json.loads((artifact.path / "report.json").read_text())
    assert (report["asked"], report["kept"], report["dropped"]) == (10, 8, {"low score": 2})


def test_an_interruption_loses_nothing_and_repeats_no_request(server: Server, tmp_path: Path) -> None:
    server.script = [said(str(n)) for n in range(8)] + [(500, {}, "down")] * 2
    workspace = Workspace.open(tmp_path)
    given = conversations(workspace, tmp_path / "given")
    path = tmp_path / "made.yaml"
    path.write_text(RECIPE.format(artifact=given.id, url=server.url, more="scorer: none"))
    with pytest.raises(ServiceError, match=r"status 500: down"):
        run_plain(open_session(str(path), [], [], tmp_path, PlainDisplay))
    before = len(server.asked)
    session = open_session(str(path), [], [], tmp_path, PlainDisplay)
    run_plain(session)
    assert len(server.asked) - before == 2
    assert len(rows_of(session.outcomes["synthesize"].artifact)) == 10


def test_programs_are_run_and_reworded_prompts_are_marked(server: Server, tmp_path: Path) -> None:
    server.script = Solver(server, wrong=(1,), form="```python\nanswer = {}\n```")
    run = made(server, tmp_path / "a", "scorer: execution")
    assert {row["synthesis"]["of"] for row in rows_of(run)} == {f"sum-{n}" for n in range(10)} - {"sum-1"}
    reworded = rows_of(made(server, tmp_path / "b", "make: variants\n    scorer: judge\n    min_score: 0.8"))
    assert len(reworded) == 10
    row = next(row for row in reworded if row["synthesis"]["of"] == "sum-5")
    assert row["messages"] == [
        {"role": "user", "content": "Tell me what comes after 5"}, {"role": "assistant", "content": "6"},
    ]  # fmt: skip
    assert row["synthesis"]["score"] == 0.9


def test_responses_are_criticised_by_a_principle_and_revised(server: Server, tmp_path: Path) -> None:
    server.script = Solver(server, wrong=())
    more = 'make: revisions\n    scorer: none\n    constitution: ["Be polite.", "Be brief."]'
    artifact = made(server, tmp_path, more)
    rows = {row["synthesis"]["of"]: row for row in rows_of(artifact)}
    assert set(rows) == {f"sum-{n}" for n in range(10)} - {"sum-3"}
    row = rows["sum-7"]
    assert row["messages"][-1] == {"role": "assistant", "content": "Surely 8"}
    origin = row["synthesis"]
    assert (origin["critique"], origin["before"], origin["model"]) == ("It is curt.", "8", "tiny")
    assert {row["synthesis"]["principle"] for row in rows.values()} == {"Be polite.", "Be brief."}
    assert origin["principle"] in origin["prompt"][0]["content"]
    assert "It is curt." in origin["prompt"][0]["content"]
    assert json.loads((artifact.path / "report.json").read_text())["dropped"] == {"empty": 1}


def test_tools_are_sent_with_the_prompt_and_the_call_is_kept(server: Server, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lyon"}}}
    earlier = [
        {"role": "user", "content": "Weather in Lyon?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
    ]
    workspace = Workspace.open(tmp_path)
    (tmp_path / "given").mkdir()
    for split, count in (("train", 4), ("heldout", 1)):
        rows = [
            {
                "id": f"{split}-{n}",
                "source": "calls",
                "messages": [*earlier, {"role": "assistant", "content": f"answer {n}"}, {"role": "user", "content": f"And {n}?"},
                             {"role": "assistant", "content": "x"}],
                "tools": [tool],
                "task": None,
            }
            for n in range(count)
        ]  # fmt: skip
        json_lines.write(tmp_path / "given" / f"{split}.jsonl", rows)
    given = workspace.publish(tmp_path / "given", kind="conversations")
    sent = {"id": "call_x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Nice"}'}}
    message = {"content": None, "tool_calls": [sent]}
    server.script = [(200, {}, {"choices": [{"message": message, "finish_reason": "tool_calls"}]})] * 4
    path = tmp_path / "made.yaml"
    path.write_text(RECIPE.format(artifact=given.id, url=server.url, more="scorer: none"))
    session = open_session(str(path), [], [], tmp_path, PlainDisplay)
    run_plain(session)

    _, body = server.asked[0]
    assert body["tools"] == [tool]
    [asked_call] = body["messages"][1]["tool_calls"]
    assert asked_call["function"] == {"name": "weather", "arguments": '{"city": "Lyon"}'}
    assert body["messages"][2] == {"tool_call_id": asked_call["id"], "role": "tool", "content": "rain"}
    for row in rows_of(session.outcomes["synthesize"].artifact):
        assert row["tools"] == [tool]
        answer = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Nice"}}}
        assert row["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [answer]}


class Marker(list[Response]):
    """Gives a different response each time, and marks it by its number."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server, self.said = server, 0

    def __bool__(self) -> bool:
        return True

    def pop(self, _: Any = -1) -> Response:
        text = self.server.asked[-1][1]["messages"][-1]["content"]
        if text.startswith("Mark"):
            return said(text.split()[-1])
        self.said += 1
        return said(str(self.said % 3 + 5))


def test_the_best_of_several_responses_is_kept(server: Server, tmp_path: Path) -> None:
    server.script = Marker(server)
    artifact = made(
        server,
        tmp_path,
        "scorer: judge\n    keep: best\n    samples_per_prompt: 3\n    min_score: 0.5\n    max_rows: 4",
    )
    rows = rows_of(artifact)
    assert [(row["messages"][-1]["content"], row["synthesis"]["score"]) for row in rows] == [("7", 0.7)] * 4
    report = json.loads((artifact.path / "report.json").read_text())
    assert (report["asked"], report["kept"], report["dropped"]) == (12, 4, {"not the best": 8})


DOCUMENTS = """
name: asked
seed: 1
stages:
  synthesize:
    make: prompts
    tokens: artifact:{artifact}
    endpoint: {{url: "{url}", model: tiny, retries: 0, concurrency: 2}}
    scorer: none
    max_rows: 6
    document_characters: 40
    heldout_fraction: 0.2
"""


def test_prompts_are_written_about_documents_of_the_corpus(server: Server, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    folder = tmp_path / "tokens"
    folder.mkdir()
    rows = [
        {"id": f"web:{n}", "source": "web", "split": "train" if n < 8 else "heldout", "digest": f"{n:064x}",
         "text": f"Furnace {n} is fired at {n}00 degrees. " + "It is made of clay. " * 5}
        for n in range(9)
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "documents.parquet")
    tokens = workspace.publish(folder, kind="tokens")
    server.script = [said(f"Question: How hot is it?\n\nAnswer: {n}00 degrees.") for n in range(5)] + [said("No.")]
    path = tmp_path / "asked.yaml"
    path.write_text(DOCUMENTS.format(artifact=tokens.id, url=server.url))
    session = open_session(str(path), [], [], tmp_path, PlainDisplay)
    run_plain(session)
    artifact = session.outcomes["synthesize"].artifact
    assert artifact.manifest.parents == (tokens.digest,)
    found = rows_of(artifact)
    assert len(found) == 5
    assert json.loads((artifact.path / "report.json").read_text())["dropped"] == {"no prompt and response": 1}
    assert found[0]["messages"][0] == {"role": "user", "content": "How hot is it?"}
    assert found[0]["messages"][1]["content"].endswith("00 degrees.")
    of = {row["synthesis"]["of"] for row in found}
    assert of < {f"web:{n}" for n in range(8)}
    row = found[0]
    text = next(each["text"] for each in rows if each["id"] == row["synthesis"]["of"])
    assert str(row["synthesis"]["prompt"][0]["content"]).endswith(f"Text:\n{str(text)[:40]}")


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("scorer: reward_model", "scorer=reward_model and `reward_model` need each other"),
        ("make: prompts\n    scorer: none", "give `tokens` for make=prompts"),
        ("writer: sft", "give either `endpoint` or `writer`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(
    server: Server, tmp_path: Path, more: str, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        made(server, tmp_path, more)
    assert "\n" not in str(caught.value)


def test_impossible_scorers_and_scores_that_are_all_low_are_refused_in_one_line(server: Server, tmp_path: Path) -> None:
    server.script = Solver(server, wrong=tuple(range(10)))
    with pytest.raises(ConfigError, match=r"none of 10 texts is left for training \(low score 10\)\. Lower min_score"):
        made(server, tmp_path / "a", "max_rows: 10")
    with pytest.raises(
        ConfigError, match=r"variants keep their original responses, so scorer=task would pass all of them"
    ):
        made(server, tmp_path / "b", "make: variants")


def test_marks_are_parsed() -> None:
    assert (mark_of("Mark: 7 of 10"), mark_of("8.5"), mark_of("none"), mark_of("99")) == (0.7, 0.85, 0.0, 0.0)
