"""Near-duplicate removal against brute force and against datasketch."""

import random
import re
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola_platform.corpus.config import DeduplicationConfig
from cupola_platform.corpus.core.documents import Document
from cupola_platform.corpus.core.shingles import shingle
from cupola_platform.corpus.deduplication.duplicates import Cluster, FindSimilar, Signatures
from cupola_platform.corpus.deduplication.minhash import minhash, rows_per_band

HAN = [chr(point) for point in range(0x4E00, 0x5E00)]


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[int]:
    """For each text the index of its cluster's first member, by the preparation's own steps."""
    config = DeduplicationConfig(threshold=threshold)
    documents = [Document("s", f"{i}.txt", 0, text, len(text.encode())) for i, text in enumerate(texts)]
    bands = config.num_permutations // rows_per_band(threshold, config.num_permutations)
    with tempfile.TemporaryDirectory() as work:
        signatures, candidates, near = Path(work, "signatures"), Path(work, "candidates"), Path(work, "near")
        list(Signatures(config, 0, signatures).run(documents))
        for band in range(bands):
            list(FindSimilar(signatures, 1, candidates).run(None, band, bands))
        list(Cluster(signatures, 1, candidates, threshold, near).run(None))
        first = dict(np.load(near / "00000.npy").tolist())
    return [first.get(i, i) for i in range(len(texts))]


def words_of(text: str) -> list[str]:
    """Words as in `shingle`, computed differently: each Chinese character is one."""
    return re.findall(r"[一-鿿]|[^\W一-鿿]+", text.lower())


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = words_of(text)
    return set(zip(*(words[i:] for i in range(n)), strict=False)) if len(words) >= n else {tuple(words)} - {()}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def planted(seed: int, count: int, copies: int, *, chinese: bool = False) -> list[str]:
    """`count` texts of 200 words, each with copies in which 1 to 8 words were replaced: similarities 0.6 to 0.95."""
    rng = random.Random(seed)
    vocabulary = HAN if chinese else ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(3000)]
    join = "" if chinese else " "
    texts = []
    for _ in range(count):
        words = rng.choices(vocabulary, k=200)
        texts.append(join.join(words))
        for _ in range(copies):
            edited = list(words)
            for place in rng.sample(range(200), rng.randint(1, 8)):
                edited[place] = rng.choice(vocabulary)
            texts.append(join.join(edited))
    rng.shuffle(texts)
    return texts


def pairs_at_least(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    sets = [grams(text) for text in texts]
    return {(i, j) for i, j in combinations(range(len(texts)), 2) if jaccard(sets[i], sets[j]) >= threshold}


def components(count: int, pairs: set[tuple[int, int]]) -> list[int]:
    first = list(range(count))
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            least = min(first[i], first[j])
            changed |= first[i] != least or first[j] != least
            first[i] = first[j] = least
    return first


@pytest.mark.parametrize("chinese", [False, True])
def test_recall_is_at_least_datasketchs_and_every_pair_is_verified(chinese: bool) -> None:
    texts = planted(1, 60, 4, chinese=chinese)
    true_pairs = pairs_at_least(texts, 0.8)
    assert len(true_pairs) > 140

    index = MinHashLSH(threshold=0.8, num_perm=112)
    hashes = []
    for i, text in enumerate(texts):
        minhashed = MinHash(num_perm=112)
        minhashed.update_batch([" ".join(gram).encode() for gram in grams(text)])
        hashes.append(minhashed)
        index.insert(i, minhashed)
    theirs = {(i, j) for i, hashed in enumerate(hashes) for j in index.query(hashed) if i < j} & true_pairs

    first = near_duplicates(texts)
    ours = {(i, j) for i, j in true_pairs if first[i] == first[j]}
    assert len(ours) >= len(theirs)
    assert len(ours) >= 0.98 * len(true_pairs)

    exact = components(len(texts), true_pairs)
    wrong = [(i, j) for i, j in combinations(range(len(texts)), 2) if first[i] == first[j] and exact[i] != exact[j]]
    assert wrong == []


def test_each_text_gets_the_first_member_of_its_cluster() -> None:
    base = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    other = "a quite different text about the weather in the mountains and about nothing else at all"
    assert near_duplicates([other, base, base + " sixteen", other.upper(), base]) == [0, 1, 1, 0, 1]


def test_a_lower_threshold_joins_texts_that_a_higher_one_separates() -> None:
    words = [f"word{i}" for i in range(60)]
    texts = [" ".join(words), " ".join([*words[:30], "changed", *words[31:]])]  # 51 of 61 shingles: 0.836
    assert near_duplicates(texts, threshold=0.8) == [0, 0]
    assert near_duplicates(texts, threshold=0.9) == [0, 1]


def test_texts_without_words_are_left_to_exact_deduplication() -> None:
    assert near_duplicates(["🙂🙂", "", "🙂🙂", "🚀", " "]) == [0, 1, 2, 3, 4]


def test_short_texts_are_compared_whole() -> None:
    assert near_duplicates(["two words", "two words!", "words two", "two"]) == [0, 0, 2, 3]


def test_no_texts_give_no_clusters() -> None:
    assert near_duplicates([]) == []


def test_twenty_thousand_copies_take_seconds_not_hours() -> None:
    base = " ".join(f"word{i}" for i in range(100))
    texts = [f"{base} number {i}" for i in range(20_000)]
    start = time.process_time()
    assert set(near_duplicates(texts)) == {0}
    assert time.process_time() - start < 30


def test_blocks_do_not_change_the_shingles(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "Un été à la mer, des 2 côtés.",
        "",
        "今天天气很好,我们去长城。",
        "one",
        "x" * 50 + " y z w v u",
        "日本語のテキスト",
    ] * 3
    whole = shingle(texts, 5)
    monkeypatch.setattr("cupola_platform.corpus.core.shingles.BLOCK_CHARACTERS", 16)
    parted = shingle(texts, 5)
    assert np.array_equal(whole.hashes, parted.hashes)
    assert np.array_equal(whole.offsets, parted.offsets)
    signatures = minhash(whole, 32)
    monkeypatch.setattr("cupola_platform.corpus.deduplication.minhash.BLOCK_SHINGLES", 4)
    assert np.array_equal(signatures, minhash(whole, 32))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(alphabet="ab c,.\n你好吗é_1", max_size=40), max_size=6), st.integers(1, 6))
def test_shingle_counts_are_those_of_the_words(texts: list[str], ngram: int) -> None:
    found = shingle(texts, ngram)
    for i, text in enumerate(texts):
        assert len(found.unique(i)) == len(grams(text, ngram))


def test_signatures_estimate_the_similarity_without_bias() -> None:
    texts = planted(3, 40, 1)
    shingles = shingle(texts, 5)
    signatures = minhash(shingles, 512)
    sets = [grams(text) for text in texts]
    pairs = [(i, j) for i, j in combinations(range(len(texts)), 2) if jaccard(sets[i], sets[j]) > 0.1]
    errors = [float((signatures[i] == signatures[j]).mean()) - jaccard(sets[i], sets[j]) for i, j in pairs]
    assert len(pairs) == 40
    assert abs(float(np.mean(errors))) < 0.01
    assert float(np.std(errors)) < 0.025  # sqrt(s (1 - s) / 512) is at most 0.022


def test_bands_find_nineteen_of_twenty_pairs_at_the_threshold() -> None:
    rows = rows_per_band(0.8, 112)
    assert rows == 7
    assert 1 - (1 - 0.8**rows) ** (112 // rows) > 0.95
    assert rows_per_band(1.0, 112) == 112
