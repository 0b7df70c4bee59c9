"""Perplexity percentiles per language, with a process that scores texts by a number in them."""

import json
import sys
from pathlib import Path

from pyarrow import parquet

from cupola_platform.corpus.config import ExecutorConfig, Files, PerplexityConfig, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare

SCORER = """
import json, re, sys
for line in sys.stdin:
    print(json.dumps([int(re.search(r"[0-9]+", text)[0]) / 10 for text in json.loads(line)]), flush=True)
"""
SENTENCES = {
    "en": "This is page {} of the notes about the river and the people who live beside it through the seasons.",
    "de": "Dies ist die Seite {} der Notizen über den Fluss und die Menschen, die das ganze Jahr an ihm wohnen.",
}


def test_each_language_keeps_its_least_surprising_documents_and_their_scores(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for language, first in (("en", 1), ("de", 21)):
        for number in range(first, first + 10):
            (texts / f"{language}-{number:02}.txt").write_text(SENTENCES[language].format(number))
    config = PrepareConfig(
        sources={"notes": Files(path=str(texts))},
        quality=None,
        deduplication=None,
        perplexity=PerplexityConfig(max_bits_per_byte=2.9, max_percentile=60),
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=1),
    )
    report = prepare(config, tmp_path / "out", scorer=[sys.executable, "-c", SCORER])
    rows = parquet.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    kept = {language: [row["bits_per_byte"] for row in rows if row["language"] == language] for language in SENTENCES}
    assert kept == {"en": [0.3, 0.4, 0.5, 0.6, 0.7], "de": [2.1, 2.2, 2.3, 2.4, 2.5, 2.6]}
    told = {step.step: {reason: loss.documents for reason, loss in step.lost.items()} for step in report.steps}
    assert told["perplexity"] == {"too surprising": 1, "too predictable": 2}
    assert told["perplexity by language"] == {"surprising for de": 3, "surprising for en": 3}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["perplexity_cutoffs"] == {"de": 2.6, "en": 0.7}
