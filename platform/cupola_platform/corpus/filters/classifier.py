"""Document classifiers trained on labelled sources: logistic regression on hashed words and word pairs.

The features are those of fastText's classifiers (Joulin et al. 2017) without the embedding. A model is an array of
weights, so loading it unpickles nothing. Words are those of `shingles`, so any script works.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from cupola_platform.corpus.config.classifiers import ClassifierConfig, QualityModelConfig
from cupola_platform.corpus.config.sources import Source
from cupola_platform.corpus.core.document_files import with_digest
from cupola_platform.corpus.core.documents import Document, Drop, drop
from cupola_platform.corpus.core.heldout import draws
from cupola_platform.corpus.core.shingles import I64, hashed_words, ngrams
from cupola_platform.corpus.core.tasks import write
from cupola_platform.corpus.sources.reader import read_source
from cupola_platform.errors import ConfigError, SourceError

BITS = 18
"""Features are hashed to 2**18 values."""

HELDOUT = 0.2
MIN_DOCUMENTS = 10
"""Minimum documents per class, below which held-out accuracy is meaningless."""

INVERSE_REGULARIZATION = 100.0
"""scikit-learn's C. Feature vectors have norm 1, so the default of 1 would underfit."""

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Classifier:
    """A trained classifier."""

    weights: F32
    """[2**BITS]"""
    intercept: float

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probability of the positive class. Shape [texts]."""
        logits = [self.intercept + float(self.weights[of].sum()) / math.sqrt(max(len(of), 1)) for of in features(texts)]
        scores: NDArray[np.float64] = 1 / (1 + np.exp(-np.array(logits)))
        return scores

    def save(self, folder: Path, account: Mapping[str, object]) -> None:
        """Write the weights, and their metadata `account`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "weights.npz", weights=self.weights, intercept=np.float64(self.intercept))
        write(folder / "classifier.json", json.dumps(account, indent=2, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Raises ConfigError if the folder has no classifier."""
        try:
            with np.load(folder / "weights.npz") as arrays:
                weights, intercept = arrays["weights"], float(arrays["intercept"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"model={str(folder)!r} has no classifier ({error}). Name the folder models/NAME of a tokens artifact."
            ) from error
        return cls(weights, intercept)


def features(texts: Sequence[str]) -> Iterator[I64]:
    """The distinct words and word pairs of each text, as hashes below 2**BITS."""
    words = hashed_words(texts)
    shift = np.uint64(64 - BITS)
    for place in range(len(texts)):
        single = words.of(place)
        yield np.unique(np.concatenate([single, ngrams(single, 2)]) >> shift).astype(np.int64)


def learn(positive: Sequence[str], negative: Sequence[str]) -> tuple[Classifier, dict[str, float]]:
    """Train a classifier, and measure it on a fifth of the documents, held out from training.

    Returns:
        The classifier, and {"accuracy", "low", "high" (Wilson, 95%), "auc", "heldout", "train"}, with both classes
        weighted equally.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    labels = np.repeat([1, 0], [len(positive), len(negative)])
    hashed = list(features([*positive, *negative]))
    sizes = np.array([len(of) for of in hashed])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    rows = csr_matrix(
        (values, np.concatenate(hashed), np.concatenate([[0], np.cumsum(sizes)])), shape=(len(hashed), 1 << BITS)
    )
    held = _heldout([*positive, *negative], labels)
    model = LogisticRegression(C=INVERSE_REGULARIZATION, class_weight="balanced", max_iter=500)
    model.fit(rows[~held], labels[~held])
    classifier = Classifier(model.coef_[0].astype(np.float32), float(model.intercept_[0]))
    scores = model.predict_proba(rows[held])[:, 1]
    accuracy = float(balanced_accuracy_score(labels[held], scores >= 0.5))
    low, high = wilson(accuracy, int(held.sum()))
    measured = {"accuracy": accuracy, "low": low, "high": high, "auc": float(roc_auc_score(labels[held], scores))}
    return classifier, measured | {"heldout": float(held.sum()), "train": float((~held).sum())}


def _heldout(texts: Sequence[str], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Selects a fifth of each class by the texts' digests, so that equal texts stay on one side unless that would leave
    the other side empty."""
    digests = np.array([np.frombuffer(bytes.fromhex(_digest(text))[:16], "<u8") for text in texts])
    drawn = draws(digests, 0)
    held = np.zeros(len(texts), bool)
    for label in (0, 1):
        of = np.flatnonzero(labels == label)
        held[of] = drawn[of] <= np.quantile(drawn[of], HELDOUT)
    return held


def _digest(text: str) -> str:
    return with_digest(Document("", "", 0, text, 0))


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count`."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


class LearnClassifier(PipelineStep):  # type: ignore[misc]
    """Reads the labelled sources and trains, in one task. An existing classifier is copied."""

    type, name = "classifier", "learning"

    def __init__(self, key: str, config: ClassifierConfig, to: Path) -> None:
        super().__init__()
        self.key, self.config, self.to = key, config, to

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if self.config.model:
            folder = self.config.model.expanduser()
            account = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
            Classifier.load(folder).save(self.to, account)
        else:
            positive, negative = (self._read(side) for side in ("positive", "negative"))
            classifier, measured = learn(positive, negative)
            account = {side: list(getattr(self.config, side)) for side in ("positive", "negative")}
            classifier.save(
                self.to, {**account, "documents": {"positive": len(positive), "negative": len(negative)}, **measured}
            )
        yield from ()

    def _read(self, side: str) -> list[str]:
        sources: Mapping[str, Source] = getattr(self.config, side)
        texts: list[str] = []
        left = self.config.max_bytes
        for name, source in sources.items():
            for outcome in read_source(name, source, max_document_bytes=1 << 22, files=[]):
                if isinstance(outcome, Document) and left > 0:
                    texts.append(outcome.text)
                    left -= outcome.size
        if len(texts) < MIN_DOCUMENTS:
            raise SourceError(
                f"{self.key}.{side}: {len(texts)} documents are too few to train on. Give at least {MIN_DOCUMENTS}, "
                "better some thousands."
            )
        return texts


@dataclass(frozen=True)
class QualityModel:
    """Drops documents that the classifier finds unlike the positive ones."""

    config: QualityModelConfig
    folder: Path
    name: str = "quality model"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        wanted = self.config.languages
        judged = [document for document in documents if not wanted or document.language in wanted]
        scores = iter(loaded(self.folder).scores([document.text for document in judged]).tolist())
        return [
            drop(document, "low score of the quality model", f"{score:.3f}")
            if (not wanted or document.language in wanted) and (score := next(scores)) < self.config.min_score
            else document
            for document in documents
        ]


@cache
def loaded(folder: Path) -> Classifier:
    """Load a classifier, cached per worker."""
    return Classifier.load(folder)
