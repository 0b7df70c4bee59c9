"""Less common shapes of conversations and pairs, and rows that are neither."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pytest
from pyarrow import parquet

from cupola_platform.errors import SourceError
from cupola_platform.json_lines import BadLineError
from cupola_platform.rows.drops import Drops
from cupola_trainer.data.files import RowFiles, read_conversations, read_pairs, usable
from cupola_trainer.data.instructions import make_conversations
from cupola_trainer.data.preferences import read_preferences
from cupola_trainer.data.shapes import conversation, pair

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def calling(name: str, **arguments: Any) -> Row:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def result(text: str) -> Row:
    return {"role": "tool", "content": text}


ASKED = [user("Is it?"), said("It is.")]

WEATHER = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": WEATHER}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [{"role": "developer", "content": "Be brief."}, *ASKED]}, [system("Be brief."), *ASKED]),
        ({"messages": [system(""), *ASKED]}, ASKED),
        ({"messages": [{"role": "system", "content": None}, *ASKED]}, ASKED),
        ({"messages": json.dumps(ASKED)}, ASKED),
        ({"messages": str(ASKED)}, ASKED),
        ({"messages": {"role": ["user", "assistant"], "content": ["Is it?", "It is."]}}, ASKED),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Is"}, {"type": "text", "text": "it?"}]}, ASKED[1]]},
         [user("Is\nit?"), ASKED[1]]),
        ({"messages": [{"role": "USER ", "content": "Is it?"}, {"role": "Assistant", "content": "It is."}]}, ASKED),
        ({"contents": [{"role": "user", "parts": [{"text": "Is it?"}]}, {"role": "model", "parts": [{"text": "It is."}]}]}, ASKED),
        ({"messages": None, "conversations": [], "prompt": "Is it?", "completion": "It is.", "tools": None}, ASKED),
        ({"prompt": "Is it?", "completion": "", "output": "It is."}, ASKED),
        ({"messages": [user("Is it?")], "answer": "It is."}, ASKED),
        ({"prompt": [user("Is it?")], "completion": [said("It is.")]}, ASKED),
        ({"instruction": "Is it?", "output": "It is.", "history": [["A", "B"]]}, [user("A"), said("B"), *ASKED]),
        ({"question": "1 + 1?", "answer": 2}, [user("1 + 1?"), said("2")]),
        ({"messages": [{**ASKED[0], "id": 7, "at": datetime.datetime(2026, 1, 1)}, {**ASKED[1], "weight": Decimal(1)}]},
        ASKED),
    ],
)  # fmt: skip
def test_a_common_shape_is_the_same_conversation(row: Row, expected: list[Row]) -> None:
    assert conversation(row) == {"messages": expected}


@pytest.mark.parametrize(
    "function", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": {}}, {"parameters": {}}]
)
@pytest.mark.parametrize("content", [None, "", []])
def test_calls_without_arguments_and_empty_results_are_accepted(function: Row, content: Any) -> None:
    call = {"type": "function", "function": {"name": "now", **function}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": content}]
    found = conversation({"messages": [user("Now?"), *turns, said("Noon.")]})["messages"]
    assert found == [user("Now?"), calling("now"), result(""), said("Noon.")]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": {"city": "A"}}},
         {"role": "function", "content": '{"c": 1}'}],
        [{"from": "gpt", "value": ""}, {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "A"}}'},
         {"from": "observation", "value": '{"c": 1}'}],
        [{"from": "tool_call", "value": '[{"name": "weather", "parameters": {"city": "A"}}]'},
         {"from": "tool_response", "value": '{"c": 1}'}],
        [{"role": "assistant", "tool_calls": '[{"function": "{\\"name\\": \\"weather\\", \\"arguments\\": {\\"city\\": \\"A\\"}}"}]'},
         {"role": "ipython", "content": {"c": 1}}],
        [{"from": "gpt", "value": '<tool_call>\n{"name": "weather", "arguments": {"city": "A"}}\n</tool_call>\n'},
         {"from": "tool", "value": '<tool_response>\n{"c": 1}\n</tool_response>'}],
    ],
    ids=["function_call beside a message", "ShareGPT's function_call", "tool_call", "calls written as JSON", "Hermes' calls within texts"],
)  # fmt: skip
def test_calls_from_every_provider_are_normalized(turns: list[Row]) -> None:
    row = {"messages": [user("How warm?"), *turns, said("1 C")], "functions": [WEATHER]}
    expected = [user("How warm?"), calling("weather", city="A"), result('{"c": 1}'), said("1 C")]
    assert conversation(row) == {"messages": expected, "tools": [TOOL]}


def test_nulls_filled_in_by_arrow_are_not_arguments(tmp_path: Path) -> None:
    calls = [calling("weather", city="A"), calling("discount", price=1, percent=10)]
    rows = [{"messages": [user("Go."), call], "tools": [TOOL]} for call in calls] + [{"messages": ASKED, "tools": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    [raw, *_] = pa.Table.from_pylist(rows).to_pylist()
    assert raw["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "A", "percent": None, "price": None}
    found = list(read_conversations(RowFiles(path=str(tmp_path / "set.parquet")), Drops()))
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]
    assert [row.get("tools") for row in found] == [row["tools"] for row in rows]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": ASKED, "tools": "[{'name': broken"}, "malformed_tools"),
        ({"messages": ASKED, "tools": ["calculator"]}, "malformed_tools"),
        ({"messages": ASKED, "tools": '[{"name": "f", "description": "\\ud83d"}]'}, "lone_surrogate"),
        ({"messages": json.dumps(ASKED).replace("It is.", "\\ud83d")}, "lone_surrogate"),
        ({"messages": "[" * 5000 + "]" * 5000}, "nested_too_deep"),
        ({"messages": [{"role": "narrator", "content": "Once."}, *ASKED]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "Once."}, said("Yes.")]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, said("A cat.")]}, "not_text"),
        ({"messages": [user("Is it?"), {"role": "assistant", "content": None}]}, "malformed"),
        ({"messages": [user("Is it?"), {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {}}}]}]},
         "malformed_tool_call"),
        ({"conversations": [{"from": "human", "value": "Go."}, {"from": "function_call", "value": "weather(A)"}]},
        "malformed_tool_call"), ({"messages": [user("Is it?"), said("It is."), user("Thanks.")]}, "no_assistant_turn"),
        ({"conversations": [{"from": "gpt", "value": "Hello."}]}, "no_prompt"),
        ({"prompt": "Is it?", "completion": " "}, "empty_message"),
        ({"prompt": "Is it?"}, "no_assistant_turn"),
        ({"text": "Once upon a time"}, "malformed"),
        ({"messages": []}, "malformed"),
        ({}, "malformed"),
        ({"prompt": "Is it?", "completion": "x", "tests": [1]}, "malformed_tests"),
    ],
)  # fmt: skip
def test_a_row_without_a_conversation_is_dropped_with_a_reason(row: Row, reason: str) -> None:
    with pytest.raises(BadLineError) as raised:
        conversation(row)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Is it?", "response_1": "a", "response_2": "b", "preference_strength": 0}, "no_preference"),
        ({"conversation_a": ASKED, "conversation_b": ASKED, "winner": "tie"}, "no_preference"),
        ({"prompt": "Is it?", "completions": [{"response": "a", "overall_score": 1.0}]}, "no_preference"),
        ({"prompt": "Is it?", "chosen": "a", "rejected": None}, "malformed"),
        ({"prompt": "Is it?", "chosen": "a", "rejected": 7}, "malformed"),
        ({"chosen": "a", "rejected": "b"}, "no_prompt"),
        ({"chosen": ASKED, "rejected": [user("Was it?"), said("No.")]}, "other_prompts"),
        ({"prompt": "Is it?", "chosen": [calling("weather", city="A")], "rejected": [calling("weather", city="A")]},
        "equal_responses"),
    ],
)  # fmt: skip
def test_a_row_without_a_pair_is_dropped_with_a_reason(row: Row, reason: str) -> None:
    with pytest.raises(BadLineError) as raised:
        pair(row)
    assert raised.value.reason == reason


def test_responses_keep_their_tool_calls() -> None:
    better, worse = (calling("weather", city=city) for city in ("A", "B"))
    before = [user("How warm?"), calling("where"), result("A")]
    found = pair({"chosen": [*before, better], "rejected": [*before, worse], "tools": [WEATHER]})
    assert (found["messages"], found["chosen"], found["rejected"]) == (before, [better], [worse])
    found = pair({"prompt": "How warm?", "chosen": better, "rejected": "I cannot know."})
    assert (found["chosen"], found["rejected"]) == ([better], "I cannot know.")


def test_csv_tables_with_common_quirks_are_read(tmp_path: Path) -> None:
    frame = pandas.DataFrame([{"messages": ASKED, "score": 0.5}, {"messages": [system(""), *ASKED], "score": 1.0}])
    frame.to_csv(tmp_path / "printed.csv")  # lists as Python prints them, and a column without a name
    frame.assign(messages=frame["messages"].map(json.dumps)).to_csv(tmp_path / "json.tsv", sep="\t")
    frame.to_json(tmp_path / "records.json", orient="records")
    frame.to_json(tmp_path / "lines.json.xz", orient="records", lines=True)
    frame.to_parquet(tmp_path / "frame.parquet")
    frame.to_feather(tmp_path / "frame.feather")
    (tmp_path / "README.md").write_text("# A card")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.json").write_text("[]")
    found = list(read_conversations(RowFiles(path=str(tmp_path), source="x"), Drops()))
    assert [row["messages"] for row in found] == [ASKED] * 12
    assert len({row["id"] for row in found}) == 12


def test_scores_in_text_columns_are_parsed_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "prompt,chosen,rejected,chosen_score,score_rejected,margin\nIs it?,It is.,No.,4.5,n/a,nan\n"
    )
    [found] = read_pairs(RowFiles(path=str(tmp_path / "p.csv")), Drops())
    assert (found["chosen_score"], found["rejected_score"]) == (4.5, None)
    assert "margin" not in found


def test_files_with_the_same_name_get_different_ids(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.jsonl").write_text(json.dumps({"prompt": folder, "completion": "x"}) + "\n")
    found = list(read_conversations(RowFiles(path=f"{tmp_path}/**/*.jsonl"), Drops()))
    assert [row["id"] for row in found] == ["a/part.jsonl/1", "b/part.jsonl/1"]


def made(tmp_path: Path, rows: list[Row]) -> Row:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_conversations(
        tasks=[], corpus=None, corpus_conversations=0, heldout_per_task=3, seed=1, to=tmp_path / "out",
        files=[RowFiles(path=str(tmp_path / "rows.jsonl"))],
    )  # fmt: skip


def test_only_identical_rows_are_duplicates(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": f"Is {n}?", "completion": "Yes."} for n in range(60)]
    rows += [
        {"prompt": "Is 3?", "completion": "No."},
        {"prompt": "Is 3?", "completion": "Yes.", "tools": [WEATHER]},
        rows[3],
    ]
    report = made(tmp_path, rows)
    assert (report["train"], report["heldout"]) == ({"rows": 59}, {"rows": 3})
    assert report["dropped"] == {"repeated": 1}
    asked = [
        {(row["messages"][0]["content"], json.dumps(row.get("tools"))) for row in map(json.loads, path.read_text().splitlines())}
        for path in (tmp_path / "out" / "train.jsonl", tmp_path / "out" / "heldout.jsonl")
    ]  # fmt: skip
    assert not asked[0] & asked[1]


def test_a_repeated_pair_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(4)]
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {**rows[0], "rejected": "Hm."}])
    )
    files = [RowFiles(path=str(tmp_path / "p.jsonl"))]
    report = read_preferences(files, heldout_fraction=0.25, seed=1, to=tmp_path / "out")
    assert sum(report["pairs"].values()) == 5
    assert report["dropped"] == {"repeated": 1}


def test_files_without_usable_rows_are_refused_with_the_most_common_reason_first(tmp_path: Path) -> None:
    bad = [{"messages": [{"role": "narrator", "content": "Once."}]}] * 3
    with pytest.raises(SourceError) as raised:
        made(tmp_path, [{"prompt": "Is it?"}, *bad])
    place = tmp_path / "rows.jsonl"
    assert str(raised.value) == (
        f"path='{place}' holds no usable row; dropped: unknown_role 3 (first {place}, line 2: turns of narrator), "
        f"no_assistant_turn 1 (first {place}, line 1: turns of user). Fix the rows, or name other files."
    )
    place.write_text("")
    with pytest.raises(SourceError, match=r"holds no usable row; dropped: nothing\."):
        usable(read_pairs, RowFiles(path=str(place)), Drops())
