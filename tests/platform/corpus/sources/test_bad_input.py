"""Bad input is counted and named, or refused in one line; nothing is lost silently."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from pydantic import TypeAdapter

from cupola_platform.corpus.config import ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.errors import SourceError

WORDS = [
    "the",
    "founder",
    "opens",
    "a",
    "tap",
    "and",
    "fills",
    "his",
    "mould",
    "with",
    "iron",
    "that",
    "is",
    "to",
    "be",
    "cooled",
    "for",
    "days",
    "of",
    "rest",
    "in",
    "sand",
]

SCRIPT = """
import resource, sys
from pathlib import Path
from pydantic import TypeAdapter
from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.pipeline.preparation import prepare
if __name__ == "__main__":
    report = prepare(TypeAdapter(PrepareConfig).validate_json(sys.argv[1]), Path(sys.argv[2]))
    print({tally.step: (tally.documents_in, tally.documents_out) for tally in report.steps})
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def prose(seed: int) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(WORDS, k=12)).capitalize() + f", number {rng.random()}." for _ in range(12))


def config_of(folder: Path, **change: object) -> PrepareConfig:
    return PrepareConfig(
        sources={"raw": Files(path=str(folder))},
        tokenizer=TokenizerConfig(vocab_size=320, train_bytes=100_000),
        executor=ExecutorConfig(workers=1),
        **change,  # type: ignore[arg-type]
    )


def test_every_kind_of_bad_input_in_one_folder_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(4):
        (raw / f"good{i}.txt").write_text(prose(i))
    (raw / "utf8.txt").write_bytes(b"caf\xe9 " * 50)
    (raw / "latin.html").write_bytes("<p>déjà vu</p>".encode("latin-1"))
    (raw / "nul.md").write_bytes(b"text\0text")
    (raw / "long.txt").write_bytes(b"x" * 300_000)
    (raw / "long.jsonl").write_text(json.dumps({"text": "y" * 3_000_000}) + "\n" + json.dumps({"text": prose(9)}))
    (raw / "emoji.txt").write_text("🙂🚀🎉 " * 100)
    (raw / "emoji-lines.txt").write_text("\n".join(["👩‍👩‍👧‍👦 🏳️‍🌈"] * 80))
    (raw / "empty.txt").touch()
    (raw / "blank.txt").write_text(" \n\t\n")
    (raw / "control.txt").write_text("\x01\x02\x03" * 40)
    packed = gzip.compress("".join(json.dumps({"text": prose(100 + i)}) + "\n" for i in range(40)).encode())
    (raw / "cut.jsonl.gz").write_bytes(packed[: len(packed) * 2 // 3])
    (raw / "not.jsonl.gz").write_bytes(b"this was never gzip")
    parquet.write_table(pyarrow.table({"body": [prose(7), prose(8)]}), raw / "other.parquet")
    (raw / "torn.parquet").write_bytes(b"PAR1 and then nothing")

    report = prepare(config_of(raw, max_document_bytes=200_000), tmp_path / "out")

    lost = {tally.step: {reason: of.documents for reason, of in tally.lost.items()} for tally in report.steps}
    assert lost["read"] == {
        "truncated or corrupt file": 2, "malformed row": 1, "NUL bytes": 1, "broken UTF-8": 2, "empty": 2,
        "longer than max_document_bytes": 2, "no text field": 2,
    }  # fmt: skip
    assert lost["unicode repair"] == {"nothing but control characters": 1}
    assert sum(lost["language"].values()) + sum(lost["quality"].values()) == 2
    for before, after in zip(report.steps, report.steps[1:], strict=False):
        assert before.documents_in == before.documents_out + sum(of.documents for of in before.lost.values())
        assert (after.documents_in, after.bytes_in) == (before.documents_out, before.bytes_out)
    read = report.steps[0]
    assert 4 + 1 + 10 < read.documents_out - 3 < 4 + 1 + 40
    named = [name for loss in read.lost.values() for name, *_ in loss.examples]
    for name in (
        "utf8.txt",
        "latin.html",
        "nul.md",
        "long.txt",
        "long.jsonl#1",
        "empty.txt",
        "not.jsonl.gz#1",
        "torn.parquet",
    ):
        assert any(each.endswith(name) for each in named), name


@pytest.mark.slow
def test_a_source_without_the_text_column_is_refused_with_the_reason(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"body": [prose(7), prose(8)]}), tmp_path / "other.parquet")
    with pytest.raises(
        SourceError, match=r"sources\.raw: no document is left .*: no text field \(2\)\. Set text_field"
    ):
        prepare(config_of(tmp_path / "other.parquet"), tmp_path / "out")


def run(config: PrepareConfig, to: Path, seconds: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Documents in and out of each step, and the peak MiB of a process of the preparation."""
    told = TypeAdapter(PrepareConfig).dump_json(config).decode()
    command = [sys.executable, "-c", SCRIPT, told, str(to)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    steps, most = done.stdout.splitlines()
    return eval(steps), int(most)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lines_of_a_gigabyte_are_counted_in_bounded_memory(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "good.txt").write_text(prose(1))
    (raw / "good2.txt").write_text(prose(2))
    block = b"z" * (1 << 20)
    for name, opener in (("line.jsonl", Path.open), ("line.txt", Path.open), ("bomb.jsonl.gz", gzip.open)):
        with opener(raw / name, "wb") as file:  # type: ignore[operator]
            for _ in range(1024):
                file.write(block)
    steps, most = run(config_of(raw), tmp_path / "out", 800)
    assert steps["read"] == (5, 2)
    assert most < 700


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_identical_documents_leave_one(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    row = json.dumps({"text": "The founder opens the tap."}) + "\n"
    for part in range(4):
        (raw / f"{part}.jsonl").write_text(row * 250_000)
    (raw / "other.txt").write_text(prose(1))
    config = config_of(raw, language=None, quality=None)
    steps, most = run(config, tmp_path / "out", 800)
    assert steps["read"] == (1_000_001, 1_000_001)
    assert steps["exact deduplication"] == (1_000_001, 2)
    assert most < 1000
