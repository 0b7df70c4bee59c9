"""From sources to a tokens artifact's content, end to end."""

import json
import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from blake3 import blake3
from pyarrow import parquet

from cupola_platform.corpus.config import (
    DeduplicationConfig,
    ExecutorConfig,
    Files,
    LanguageConfig,
    PrepareConfig,
    PythonEnvironment,
    QualityConfig,
    TokenizerConfig,
)
from cupola_platform.corpus.pipeline.preparation import PrepareReport, prepare
from cupola_platform.errors import SourceError

SUBJECTS = [
    "The founder",
    "A careful engineer",
    "The old machinist",
    "Her apprentice",
    "The night shift",
    "Our teacher",
]
VERBS = ["measures", "repairs", "describes", "polishes", "weighs", "draws", "records", "examines", "orders"]
OBJECTS = ["the furnace", "a broken gear", "the copper pipe", "every casting", "the long ledger", "a clay mould"]
ENDS = ["before the sun is up", "with great care", "and writes it down", "for the third time", "while it is still warm"]


def prose(seed: int, sentences: int = 30) -> str:
    rng = random.Random(seed)
    return "\n".join(
        f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} {rng.choice(ENDS)}, number "
        f"{rng.randint(1, 9999)}."
        for _ in range(sentences)
    )


@dataclass
class Prepared:
    config: PrepareConfig
    report: PrepareReport
    folder: Path
    progress: list[tuple[str, int, int]]
    texts: list[str]


def write_sources(folder: Path) -> list[str]:
    """60 good texts, an exact copy, a near copy, a German text and broken ones; and some modules."""
    texts = [prose(i) for i in range(60)]
    german = "Der Ofen wird am Morgen angezündet, und bis zum Mittag ist das Eisen geschmolzen und abgegossen. " * 2
    odd = [texts[3], texts[4].replace("number", "Number"), german, "The founder is a man of few words.", "🙂🚀" * 50]
    rows = [json.dumps({"text": text}) for text in texts + odd] + ["{broken", '{"text": "nul\\u0000"}']
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "broken.txt").write_bytes(b"broken \xff\xfe")
    (folder / "empty.md").touch()
    library = Path(sysconfig.get_paths()["stdlib"])
    code = folder / "code"
    code.mkdir()
    for name in ("ast", "calendar", "copy", "fractions", "heapq", "queue", "shlex", "statistics", "string", "textwrap"):
        (code / f"{name}.py").write_text((library / f"{name}.py").read_text())
    return texts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    base = tmp_path_factory.mktemp("corpus")
    texts = write_sources(base / "raw")
    config = PrepareConfig(
        sources={
            "prose": Files(path=str(base / "raw" / "*.*"), weight=3.0),
            "code": Files(path=str(base / "raw" / "code"), weight=1.0),
        },
        language=LanguageConfig(keep=("en", "code")),
        heldout_fraction=0.1,
        tokenizer=TokenizerConfig(vocab_size=512, train_bytes=100_000),
        executor=ExecutorConfig(workers=2),
    )
    progress: list[tuple[str, int, int]] = []
    report = prepare(config, base / "out", progress=lambda *event: progress.append(event))
    return Prepared(config, report, base / "out", progress, texts)


def test_each_step_reports_what_it_dropped_and_why(prepared: Prepared) -> None:
    steps = {
        tally.step: {reason: loss.documents for reason, loss in tally.lost.items()} for tally in prepared.report.steps
    }
    assert steps == {
        "read": {"broken UTF-8": 1, "empty": 1, "malformed row": 1, "NUL bytes": 1},
        "unicode repair": {},
        "language": {"language de": 1, "language unclear": 1},
        "quality": {"too few words": 1},
        "personal data": {},
        "exact deduplication": {"exact duplicate": 1},
        "near deduplication": {"near duplicate": 1},
    }
    for before, after in zip(prepared.report.steps, prepared.report.steps[1:], strict=False):
        assert (after.documents_in, after.bytes_in) == (before.documents_out, before.bytes_out)
    written = json.loads((prepared.folder / "report.json").read_text())
    assert [step["step"] for step in written["steps"]] == list(steps)
    exact = written["steps"][5]["dropped"][0]
    assert (exact["reason"], exact["documents"], exact["bytes"]) == ("exact duplicate", 1, len(prepared.texts[3]))
    assert exact["examples"][0]["document"].endswith("rows.jsonl#61")
    assert exact["examples"][0]["detail"].endswith("rows.jsonl#4")


def test_the_shards_hold_every_document_once_and_the_splits_are_disjoint(prepared: Prepared) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared.folder / "tokenizer")
    index = json.loads((prepared.folder / "index.json").read_text())
    table = parquet.read_table(prepared.folder / "documents.parquet").to_pylist()
    assert index["vocab_size"] == 512
    assert index["weights"] == {"prose": 3.0, "code": 1.0}
    assert index["end_of_document"] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    texts: dict[str, list[str]] = {"train": [], "heldout": []}
    for source in ("prose", "code"):
        for split in ("train", "heldout"):
            dataset = IndexedDataset(str(prepared.folder / "shards" / f"{split}-{source}"))
            rows = [row for row in table if row["source"] == source and row["split"] == split]
            decoded = []
            for ids, row in zip(dataset, rows, strict=True):
                assert ids[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
                assert len(ids) == row["tokens"]
                decoded.append(tokenizer.decode(ids[:-1]))
            assert decoded == [row["text"] for row in rows]
            assert index["sources"][source][split] == {
                "documents": len(rows),
                "tokens": sum(row["tokens"] for row in rows),
                "bytes": sum(len(text.encode()) for text in decoded),
                "files": [f"{split}-{source}"],
            }
            assert len(rows) > 0
            texts[split] += decoded
    assert set(texts["train"]) & set(texts["heldout"]) == set()
    assert sorted(row["text"] for row in table if row["source"] == "prose") == sorted(prepared.texts)
    assert all(row["digest"] == blake3(row["text"].encode()).hexdigest() for row in table)
    assert len({row["id"] for row in table}) == len(table) == 70


def test_every_file_read_is_listed_with_its_digest(prepared: Prepared) -> None:
    files = [json.loads(line) for line in (prepared.folder / "sources.jsonl").read_text().splitlines()]
    assert len(files) == 13
    for file in files:
        data = Path(file["path"]).read_bytes()
        assert (file["bytes"], file["blake3"]) == (len(data), blake3(data).hexdigest())


def test_progress_rises_to_the_end_of_every_step(prepared: Prepared) -> None:
    steps = list(dict.fromkeys(step for step, _, _ in prepared.progress))
    assert steps == [
        "read and clean", "find equal", "exact deduplication", "find similar", "near deduplication", "tokenizer",
        "tokenize",
    ]  # fmt: skip
    for step in steps:
        events = [(done, total) for name, done, total in prepared.progress if name == step]
        assert [done for done, _ in events] == sorted(done for done, _ in events)
        assert events[-1][0] == events[-1][1] > 0


def test_the_page_is_self_contained_and_shows_the_funnel(prepared: Prepared) -> None:
    page = (prepared.folder / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    for words in (
        "near deduplication",
        "exact duplicate",
        "malformed row",
        "language de",
        ">79</b><small>documents read",
    ):
        assert words in page


def test_the_metrics_match_the_report(prepared: Prepared) -> None:
    metrics = prepared.report.metrics
    assert (metrics["documents_read"], metrics["documents_kept"], metrics["vocab_size"]) == (79.0, 70.0, 512.0)
    dropped = {name: count for name, count in metrics.items() if name.startswith("dropped")}
    assert dropped.pop("dropped") == sum(dropped.values()) == 9.0
    assert dropped["dropped_read"] == 4.0
    index = json.loads((prepared.folder / "index.json").read_text())
    assert metrics["heldout_tokens"] == sum(of["heldout"]["tokens"] for of in index["sources"].values())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_input_gives_the_same_bytes_for_any_number_of_workers(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "shards" / "train-left.bin").write_bytes(b"of a run that was cut short")
    prepare(replace(prepared.config, executor=ExecutorConfig(workers=1)), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(prepared.folder)


def test_steps_can_be_disabled(tmp_path: Path) -> None:
    write_sources(tmp_path / "raw")
    config = PrepareConfig(
        sources={"prose": Files(path=str(tmp_path / "raw" / "rows.jsonl"))},
        language=None,
        quality=None,
        deduplication=None,
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=1),
    )
    report = prepare(config, tmp_path / "out")
    assert [tally.step for tally in report.steps] == ["read", "unicode repair", "personal data"]
    table = parquet.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    assert len(table) == 65
    copies = [row["split"] for row in table if row["text"] == prose(3)]
    assert len(copies) == 2
    assert len(set(copies)) == 1  # equal texts stay on one side
    exact = replace(config, deduplication=DeduplicationConfig(near=False))
    assert prepare(exact, tmp_path / "exact").steps[-1].documents_out == 64


def test_a_source_with_no_documents_left_is_refused_with_the_reasons(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder("raw", {"a.txt": prose(1), "b.txt": prose(2), "c.txt": prose(3)})
    config = PrepareConfig(
        sources={"web": Files(path=str(folder))},
        quality=QualityConfig(min_words=5000),
        executor=ExecutorConfig(workers=1),
    )
    with pytest.raises(SourceError, match=r"sources\.web: no document is left .*: too few words \(3\).*Loosen"):
        prepare(config, tmp_path / "out")


def test_a_corpus_of_one_document_trains_on_it_and_holds_nothing_out(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder("raw", {"a.txt": prose(1)})
    config = PrepareConfig(
        sources={"one": Files(path=str(folder))},
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=1),
    )
    prepare(config, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "shards").iterdir()) == [
        "train-one.bin",
        "train-one.blocks",
        "train-one.idx",
    ]


def test_a_missing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"sources\.web: path='nowhere' does not exist"):
        prepare(PrepareConfig(sources={"web": Files(path="nowhere")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_this_machines_own_text_becomes_tokens(tmp_path: Path) -> None:
    config = PrepareConfig(
        sources={"python": PythonEnvironment(parts=("standard_library",), max_bytes=2_000_000)},
        tokenizer=TokenizerConfig(vocab_size=1024, train_bytes=500_000),
    )
    report = prepare(config, tmp_path / "out")
    assert report.metrics["bytes_kept"] > 1_700_000
    counts = report.sources["python"]
    assert 2.0 < counts["train"].bytes / counts["train"].tokens < 4.0
    assert counts["heldout"].documents >= 1
