"""Published sets are read unmodified: two rows in each one's format, from JSON lines and Parquet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cupola_platform.rows.drops import Drops
from cupola_trainer.data.files import RowFiles, read_conversations, read_pairs

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


def read(tmp_path: Path, rows: Sequence[Row], reader: Any = read_conversations) -> tuple[list[Row], Drops]:
    """Read these rows from a file, checking that JSON lines and Parquet agree."""
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "set.parquet")
    (found, drops), (again, _) = (
        (list(reader(RowFiles(path=str(tmp_path / name)), drops)), drops)
        for name, drops in (("set.jsonl", Drops()), ("set.parquet", Drops()))
    )
    assert [{**row, "id": ""} for row in found] == [{**row, "id": ""} for row in again]
    return found, drops


OASST = {"lang": "en", "deleted": False, "review_result": True}
TREES = [
    {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": {
        "message_id": "a", "text": "Is it?", "role": "prompter", **OASST, "replies": [
            {"message_id": "b", "text": "No.", "role": "assistant", "rank": 1, **OASST, "replies": []},
            {"message_id": "c", "text": "It is.", "role": "assistant", "rank": 0, **OASST, "replies": [
                {"message_id": "d", "text": "Thanks.", "role": "prompter", "rank": None, **OASST, "replies": []}]},
            {"message_id": "e", "text": "Spam.", "role": "assistant", "rank": 2, **OASST, "deleted": True,
            "replies": []},
        ]}},
    {"message_tree_id": "u", "tree_state": "ready_for_export", "prompt": {
        "message_id": "f", "text": "Was it?", "role": "prompter", **OASST, "replies": [
            {"message_id": "g", "text": "It was.", "role": "assistant", "rank": None, **OASST, "replies": []}]}},
]  # fmt: skip
FLAT = [
    {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": rank, **OASST}
    for name, parent, text, role, rank in (
        ("a", None, "Is it?", "prompter", None), ("b", "a", "No.", "assistant", 1), ("c", "a", "It is.", "assistant",
        0), ("d", "c", "Thanks.", "prompter", None), ("f", None, "Was it?", "prompter", None),
        ("g", "f", "It was.", "assistant", None),
    )
]  # fmt: skip
WEATHER = {
    "name": "weather",
    "description": "of a city",
    "parameters": {"city": {"type": "str", "description": "which"}},
}
SETS: dict[str, tuple[list[Row], list[list[Row]]]] = {
    "UltraChat 200k": (
        [{"prompt": q, "prompt_id": "9f", "messages": [user(q), said("Yes."), user("Sure?"), said("Sure.")]} for q in "AB"],
        [[user(q), said("Yes."), user("Sure?"), said("Sure.")] for q in "AB"],
    ),
    "UltraChat": (
        [{"id": str(n), "data": [q, "Yes.", "Sure?", "Sure."]} for n, q in enumerate("AB")],
        [[user(q), said("Yes."), user("Sure?"), said("Sure.")] for q in "AB"],
    ),
    "ShareGPT": (
        [{"id": q, "conversations": [{"from": "human", "value": q}, {"from": speaker, "value": "Yes."}]}
         for q, speaker in (("A", "gpt"), ("B", "chatgpt"))],
        [[user(q), said("Yes.")] for q in "AB"],
    ),
    "OpenAssistant trees": (TREES, [ASKED, [user("Was it?"), said("It was.")]]),
    "OpenAssistant": (FLAT, [ASKED, [user("Was it?"), said("It was.")]]),
    "OpenAssistant-Guanaco": (
        [{"text": "### Human: Is it?### Assistant: It is."},
        {"text": "### Human: A\n### Assistant: B\n### Human: C### Assistant: D"}], [ASKED, [user("A"), said("B"),
        user("C"), said("D")]],
    ),
    "Tulu 3": (
        [{"id": q, "messages": [system("Be brief."), user(q), said("Yes.")], "source": "ai2-adapt-dev/x"} for q in "AB"],
        [[system("Be brief."), user(q), said("Yes.")] for q in "AB"],
    ),
    "OpenMathInstruct-1": (
        [{"question": q, "generated_solution": "It is 2.", "expected_answer": "2", "dataset": "gsm8k", "is_correct": True} for q in "AB"],
        [[user(q), said("It is 2.")] for q in "AB"],
    ),
    "OpenMathInstruct-2": (
        [{"problem": q, "generated_solution": "It is 2.", "expected_answer": "2", "problem_source": "math"} for q in "AB"],
        [[user(q), said("It is 2.")] for q in "AB"],
    ),
    "APIGen (xLAM)": (
        [{"id": n, "query": q, "answers": json.dumps([{"name": "weather", "arguments": {"city": q}}]), "tools": json.dumps([WEATHER])}
         for n, q in enumerate("AB")],
        [[user(q), calling("weather", city=q)] for q in "AB"],
    ),
    "APIGen-MT": (
        [{"system": "You sell.", "tools": json.dumps([WEATHER]), "conversations": [
            {"from": "human", "value": q}, {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": q}})},
            {"from": "observation", "value": "12 C"}, {"from": "gpt", "value": "12 C"}]} for q in "AB"],
        [[system("You sell."), user(q), calling("weather", city=q), result("12 C"), said("12 C")] for q in "AB"],
    ),
    "HelpSteer": (
        [{"prompt": q, "response": "Yes.", "helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1} for q in "AB"],
        [[user(q), said("Yes.")] for q in "AB"],
    ),
    "Magpie": (
        [{"uuid": q, "instruction": q, "response": "Yes.", "model": "m", "difficulty": "easy", "conversations": [
            {"from": "human", "value": q}, {"from": "gpt", "value": "Yes."}]} for q in "AB"],
        [[user(q), said("Yes.")] for q in "AB"],
    ),
    "Alpaca": (
        [{"instruction": "Add.", "input": n, "output": "3", "text": "Below is an instruction ..."} for n in ("1 and 2", "2 and 1")],
        [[user(f"Add.\n\n{n}"), said("3")] for n in ("1 and 2", "2 and 1")],
    ),
    "Dolly": (
        [{"instruction": "Who?", "context": c, "response": "Ann.", "category": "closed_qa"} for c in ("Ann sang.", "")],
        [[user("Who?\n\nAnn sang."), said("Ann.")], [user("Who?"), said("Ann.")]],
    ),
    "OpenOrca": (
        [{"id": "1", "system_prompt": s, "question": "Is it?", "response": "It is."} for s in ("", "Be brief.")],
        [ASKED, [system("Be brief."), *ASKED]],
    ),
    "GSM8K": (
        [{"question": q, "answer": "1 + 1 = 2\n#### 2"} for q in "AB"],
        [[user(q), said("1 + 1 = 2\n#### 2")] for q in "AB"],
    ),
    "MetaMath": (
        [{"type": "GSM_AnsAug", "query": q, "original_question": q, "response": "It is 2."} for q in "AB"],
        [[user(q), said("It is 2.")] for q in "AB"],
    ),
    "NuminaMath": (
        [{"source": "x", "problem": q, "solution": "It is 2.", "messages": [user(q), said("It is 2.")]} for q in "AB"],
        [[user(q), said("It is 2.")] for q in "AB"],
    ),
    "LIMA": (
        [{"conversations": ["A", "B"], "source": "x"}, {"conversations": ["A", "B", "C", "D"], "source": "x"}],
        [[user("A"), said("B")], [user("A"), said("B"), user("C"), said("D")]],
    ),
}  # fmt: skip
PAIRS: dict[str, tuple[list[Row], list[Row]]] = {
    "UltraFeedback binarized": (
        [{"prompt": "Is it?", "prompt_id": "9f", "messages": ASKED, "chosen": ASKED, "rejected": [user("Is it?"), said("No.")],
          "score_chosen": 8.0, "score_rejected": 3.5}] * 2,
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No.", "chosen_score": 8.0, "rejected_score": 3.5}] * 2,
    ),
    "UltraFeedback": (
        [{"source": "x", "instruction": "Is it?", "models": ["a", "b"], "completions": [
            {"model": "a", "response": "No.", "overall_score": 3.0}, {"model": "b", "response": "It is.",
            "overall_score": 8.0}]}] * 2,
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No.", "chosen_score": 8.0, "rejected_score": 3.0}] * 2,
    ),
    "hh-rlhf": (
        [{"chosen": "\n\nHuman: Is it?\n\nAssistant: What?\n\nHuman: It.\n\nAssistant: It is.",
          "rejected": "\n\nHuman: Is it?\n\nAssistant: What?\n\nHuman: It.\n\nAssistant: No."}] * 2,
        [{"messages": [user("Is it?"), said("What?"), user("It.")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "Tulu 3 preferences": (
        [{"id": "1", "source": "x", "prompt": "Is it?", "chosen": ASKED, "rejected": [user("Is it?"), said("No.")], "chosen_model": "a"}] * 2,
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "HelpSteer2 preferences": (
        [{"prompt": "Is it?", "response_1": a, "response_2": b, "preference_strength": s, "preference_statement": "..."}
         for a, b, s in (("It is.", "No.", -2), ("No.", "It is.", 3))],
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "HelpSteer3": (
        [{"domain": "general", "language": "english", "context": [user("Is it?")], "response1": a, "response2": b, "overall_preference": s}
         for a, b, s in (("It is.", "No.", -1), ("No.", "It is.", 1))],
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "OpenAssistant trees": (
        [TREES[0], {**TREES[0], "message_tree_id": "v"}],
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "Chatbot Arena": (
        [{"question_id": "1", "model_a": "x", "model_b": "y", "winner": "model_b", "turn": 1,
          "conversation_a": [user("Is it?"), said("No.")], "conversation_b": ASKED}] * 2,
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "OpenAI preferences": (
        [{"input": {"messages": [user("Is it?")], "tools": [], "parallel_tool_calls": True},
          "preferred_output": [said("It is.")], "non_preferred_output": [said("No.")]}] * 2,
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
    "LLaMA-Factory": (
        [{"conversations": [{"from": "human", "value": "Is it?"}], "chosen": {"from": "gpt", "value": "It is."},
          "rejected": {"from": "gpt", "value": "No."}}] * 2,
        [{"messages": [user("Is it?")], "chosen": "It is.", "rejected": "No."}] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_two_rows_of_a_published_set_are_conversations(tmp_path: Path, name: str) -> None:
    rows, expected = SETS[name]
    found, drops = read(tmp_path, rows)
    assert [row["messages"] for row in found] == expected
    assert not drops


@pytest.mark.parametrize("name", PAIRS)
def test_two_rows_of_a_published_set_are_pairs(tmp_path: Path, name: str) -> None:
    rows, expected = PAIRS[name]
    found, drops = read(tmp_path, rows, read_pairs)
    wanted = [{"chosen_score": None, "rejected_score": None} | row for row in expected]
    assert [{key: row[key] for key in wanted[0]} for row in found] == wanted
    assert not drops
