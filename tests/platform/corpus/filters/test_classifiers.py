"""Documents filtered by classifiers trained on labelled sources, and by word lists."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from cupola_platform.corpus.config import (
    ClassifierConfig,
    ExecutorConfig,
    Files,
    PrepareConfig,
    QualityModelConfig,
    TokenizerConfig,
    ToxicityConfig,
)
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.core.shingles import hashed_words
from cupola_platform.corpus.filters.classifier import BITS, Classifier, LearnClassifier, features, learn, wilson
from cupola_platform.corpus.filters.toxicity import ToxicityFilter, count_matches, read_lexicon
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.errors import ConfigError, SourceError

GOOD = ["theorem", "proof", "lemma", "integral", "measure", "converges", "therefore", "function"]
POOR = ["buy", "cheap", "click", "offer", "shoes", "discount", "now", "free"]
COMMON = ["the", "a", "of", "to", "and", "in", "is", "with", "for", "day", "thing", "time", "people", "house", "water"]


def text(kind: list[str], seed: int) -> str:
    rng = random.Random(f"{kind[0]} {seed}")
    return " ".join(rng.choice(kind if rng.random() < 0.15 else COMMON) for _ in range(60)) + "."


def rows(path: Path, texts: list[str]) -> Files:
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return Files(path=str(path))


def test_a_classifier_scores_like_scikit_learn_and_reports_its_held_out_accuracy() -> None:
    positive, negative = [text(GOOD, i) for i in range(80)], [text(POOR, i) for i in range(160)]
    classifier, told = learn(positive, negative)
    assert (told["heldout"], told["train"]) == (48.0, 192.0)
    assert told["low"] < told["accuracy"] <= 1.0
    assert told["accuracy"] > 0.9
    assert told["auc"] > 0.95
    new = [text(GOOD, 1000), text(POOR, 1000), "", "其他语言的文字"]
    found = list(features(new))
    sizes = [len(of) for of in found]
    values = np.concatenate([np.full(size, 1 / max(size, 1) ** 0.5) for size in sizes])
    matrix = csr_matrix((values, np.concatenate(found), np.cumsum([0, *sizes])), shape=(4, 1 << BITS))
    outside = LogisticRegression()
    outside.classes_, outside.coef_, outside.intercept_ = (
        np.array([0, 1]),
        classifier.weights[None],
        np.array([classifier.intercept]),
    )
    assert classifier.scores(new) == pytest.approx(outside.predict_proba(matrix)[:, 1], abs=1e-6)
    assert classifier.scores(new)[0] > 0.5 > classifier.scores(new)[1]


def test_wilsons_interval_matches_the_literature() -> None:
    assert wilson(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-3)  # Brown, Cai, DasGupta 2001
    assert wilson(1.0, 5)[1] == 1.0


def config_of(folder: Path) -> PrepareConfig:
    return PrepareConfig(
        sources={"web": rows(folder / "web.jsonl", [text(GOOD if i % 2 else POOR, 500 + i) for i in range(40)])},
        language=None,
        quality=None,
        deduplication=None,
        quality_model=QualityModelConfig(
            positive={"maths": rows(folder / "maths.jsonl", [text(GOOD, i) for i in range(60)])},
            negative={"shops": rows(folder / "shops.jsonl", [text(POOR, i) for i in range(60)])},
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=1),
    )


def test_a_corpus_is_filtered_by_a_model_that_is_saved_with_its_accuracy(tmp_path: Path) -> None:
    report = prepare(config_of(tmp_path), tmp_path / "out")
    step = next(tally for tally in report.steps if tally.step == "quality model")
    assert 17 <= step.documents_out <= 23
    assert list(step.lost) == ["low score of the quality model"]
    told = json.loads((tmp_path / "out" / "report.json").read_text())["models"]["quality_model"]
    assert (told["positive"], told["documents"]) == (["maths"], {"positive": 60, "negative": 60})
    assert told["accuracy"] > 0.9
    assert Classifier.load(tmp_path / "out" / "models" / "quality_model").weights.shape == (1 << BITS,)


@pytest.mark.slow
def test_a_saved_model_scores_as_before(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    prepare(config, tmp_path / "out")
    kept = tmp_path / "out" / "models" / "quality_model"
    prepare(replace(config, quality_model=QualityModelConfig(model=kept)), tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "again" / "shards").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out" / "shards").iterdir()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, ValidationError, "give `positive` and `negative` sources to train on, or the `model`"),
        ({"positive": {"a": {"type": "files", "path": "x"}}}, ValidationError, "give `positive` and `negative`"),
        ({"model": "/nowhere"}, ConfigError, r"/nowhere/weights\.npz does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    (tmp_path / "raw.txt").write_text(text(GOOD, 1))
    with pytest.raises(error, match=message):
        prepare(
            PrepareConfig(
                sources={"web": Files(path=str(tmp_path / "raw.txt"))},
                quality_model=QualityModelConfig(**change),  # type: ignore[arg-type]
                executor=ExecutorConfig(workers=1),
            ),
            tmp_path / "out",
        )


def test_too_few_documents_to_train_on_are_refused(tmp_path: Path) -> None:
    few = rows(tmp_path / "few.jsonl", ["one text"])
    config = ClassifierConfig(positive={"a": few}, negative={"b": few})
    with pytest.raises(
        SourceError, match=r"quality_model\.positive: 1 documents are too few to train on\. Give at least 10"
    ):
        list(LearnClassifier("quality_model", config, tmp_path / "to").run(None))


def document(of: str, language: str) -> Document:
    return Document("s", "a.txt", 0, of, len(of.encode()), language)


def test_words_of_a_list_are_counted_in_their_language_and_script(tmp_path: Path) -> None:
    (tmp_path / "en").write_text("# a list\nblockhead\nold goat\n\n")
    (tmp_path / "zh").write_text("笨蛋\n", encoding="utf-8-sig")
    english = read_lexicon(tmp_path / "en")
    for of, count in (("Blockhead! You OLD  goat.", 2), ("blockheads and goats, an old man", 0), ("", 0)):
        assert count_matches(hashed_words([of]).hashes, english) == count
    config = ToxicityConfig(lexicon={"en": tmp_path / "en", "zh": tmp_path / "zh"}, min_matches=2, max_share=0.05)
    step = ToxicityFilter(config, tmp_path / "none")
    outcomes = step(
        [
            document("blockhead, blockhead and more", "en"),
            document("blockhead " * 2 + "word " * 100, "en"),
            document("你这个笨蛋,真是个笨蛋", "zh"),
            document("blockhead blockhead blockhead", "zh"),
        ]
    )
    assert [of.detail if isinstance(of, Drop) else None for of in outcomes] == [
        "2 of 4 words",
        None,
        "2 of 10 words",
        None,
    ]


def test_a_toxicity_model_drops_documents_above_its_threshold(tmp_path: Path) -> None:
    classifier, told = learn([text(POOR, i) for i in range(60)], [text(GOOD, i) for i in range(60)])
    classifier.save(tmp_path, told)
    step = ToxicityFilter(ToxicityConfig(classifier=ClassifierConfig(model=tmp_path), max_score=0.6), tmp_path)
    toxic, fine = step([document(text(POOR, 99), "en"), document(text(GOOD, 99), "en")])
    assert isinstance(toxic, Drop)
    assert toxic.reason == "high score of the toxicity model"
    assert isinstance(fine, Document)


def test_an_unusable_word_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="has no words"):
        read_lexicon(tmp_path / "empty")
    with pytest.raises(ValidationError, match="give a `lexicon`, a `classifier` or both"):
        ToxicityConfig()
