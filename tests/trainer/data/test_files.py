"""Third-party conversations and pairs, in every common shape."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from cupola_platform.errors import ConfigError, SourceError
from cupola_platform.rows.drops import Drops
from cupola_trainer.data.files import RowFiles, read_conversations, read_pairs, state
from cupola_trainer.data.instructions import make_conversations
from cupola_trainer.data.preferences import read_preferences

ASKED = [{"role": "user", "content": "Is it?"}]
SAID = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]


def written(path: Path, rows: list[Any]) -> RowFiles:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RowFiles(path=str(path))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": SAID},
        {"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "It is."}]},
        {"prompt": "Is it?", "completion": "It is."},
        {"prompt": ASKED, "completion": SAID[1:]},
        {"instruction": "Is it?", "input": "", "output": "It is."},
    ],
)
def test_every_shape_yields_the_same_conversation(tmp_path: Path, row: Any) -> None:
    drops = Drops()
    [found] = read_conversations(written(tmp_path / "chat.jsonl", [row]), drops)
    assert found == {"id": "chat.jsonl/1", "source": "chat", "messages": SAID, "task": None}
    assert not drops


def test_tools_and_tags_are_kept_and_bad_rows_counted_by_reason(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "now", "arguments": "{}"}]}
    turns = [*ASKED, call, {"role": "tool", "content": "noon"}, {"role": "assistant", "content": "Noon."}]
    rows = [
        {"messages": turns, "tools": '[{"name": "now"}]', "tag": "clock"},
        {"messages": ASKED},
        {"messages": [{"role": "narrator", "content": "Once"}]},
        {"text": "no conversation"},
    ]
    drops = Drops()
    [found] = read_conversations(written(tmp_path / "calls.jsonl", rows), drops)
    assert found["tools"] == [{"type": "function", "function": {"name": "now"}}]
    assert found["tag"] == "clock"
    assert drops == {"no_assistant_turn": 1, "unknown_role": 1, "malformed": 1}


def test_a_local_hugging_face_dataset_is_read(tmp_path: Path) -> None:
    Dataset.from_list([{"messages": SAID}] * 3).save_to_disk(str(tmp_path / "saved"))
    files = RowFiles(dataset=str(tmp_path / "saved"), source="theirs")
    assert [row["source"] for row in read_conversations(files, Drops())] == ["theirs"] * 3
    before = state(files)
    (tmp_path / "saved" / "more").write_text("x")
    assert state(files) != before


def test_pairs_are_responses_or_whole_conversations(tmp_path: Path) -> None:
    def whole(response: str, prompt: str = "Is it?") -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]

    rows = [
        {"prompt": "Is it?", "chosen": "yes", "rejected": "no", "chosen_score": 2, "rejected_score": 1, "margin": 0.5},
        {"chosen": whole("yes"), "rejected": whole("no")},
        {"prompt": "Is it?", "chosen": "yes", "rejected": "yes"},
        {"chosen": whole("yes"), "rejected": whole("no", "Was it?")},
        {"prompt": "Is it?", "chosen": "yes", "rejected": " "},
    ]
    drops = Drops()
    first, second = read_pairs(written(tmp_path / "pairs.jsonl", rows), drops)
    assert (first["messages"], first["chosen"], first["rejected"], first["margin"]) == (ASKED, "yes", "no", 0.5)
    assert (second["messages"], second["chosen"], second["rejected"]) == (ASKED, "yes", "no")
    assert drops == {"equal_responses": 1, "other_prompts": 1, "empty_message": 1}


def test_all_pairs_of_a_prompt_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n // 2}?", "chosen": f"yes {n}", "rejected": "no"} for n in range(20)]
    report = read_preferences(
        [written(tmp_path / "pairs.jsonl", rows)], heldout_fraction=0.2, seed=1, to=tmp_path / "out"
    )
    assert report == {"pairs": {"heldout": 4, "train": 16}, "sources": {"pairs": 20}, "dropped": {}}
    heldout = [json.loads(line)["messages"] for line in (tmp_path / "out" / "heldout.jsonl").read_text().splitlines()]
    train = [json.loads(line)["messages"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert not [prompt for prompt in heldout if prompt in train]
    with pytest.raises(ConfigError, match="usable pairs of 1 prompts"):
        read_preferences([written(tmp_path / "one.jsonl", rows[:2])], heldout_fraction=0.2, seed=1, to=tmp_path / "o")


def test_conversations_from_files_are_combined_with_tasks(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n}?", "completion": "It is."} for n in range(60)] + [
        {"prompt": "Is 3?", "completion": "No"}
    ]
    report = make_conversations(
        tasks=[], corpus=None, corpus_conversations=0, heldout_per_task=2, seed=3, to=tmp_path / "out",
        files=[written(tmp_path / "theirs.jsonl", rows)],
    )  # fmt: skip
    assert report["heldout"] == {"theirs": 2}
    assert report["train"]["theirs"] == 59
    assert report["dropped"] == {}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="matches no file"):
        list(read_conversations(RowFiles(path=str(tmp_path / "*.jsonl")), Drops()))
    with pytest.raises(SourceError, match="cannot be read"):
        list(read_conversations(RowFiles(dataset=str(tmp_path / "none" / "such")), Drops()))
    with pytest.raises(ValueError, match="give one of them"):
        RowFiles()
