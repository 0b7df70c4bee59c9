"""Near-duplicate removal against datasketch and datatrove on real text with planted near-duplicates.

Every fifth text is a copy of the one before it with words replaced, at a Jaccard similarity between 0.7 and 0.95. All
three take turns on the same texts, with 5-grams of the same words and 112 permutations; datasketch and ours use the
same bands (16 of 7), datatrove its own (14 of 8). Results are compared with the true similarities: recall over the
planted pairs at 0.8 and above; precision as the share of the removed documents that have a true near-duplicate (0.8 and
above) in their cluster.
"""

import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

from contest import interleaved
from cupola_platform.corpus.config import DeduplicationConfig
from cupola_platform.corpus.core.documents import Document as OurDocument
from cupola_platform.corpus.core.shingles import shingle
from cupola_platform.corpus.deduplication.duplicates import Cluster, FindSimilar, Signatures
from cupola_platform.corpus.deduplication.minhash import rows_per_band

THRESHOLD, PERMUTATIONS, NGRAM, WORDS = 0.8, 112, 5, 400
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
"""Words as in our shingles: each Chinese or Japanese character is one."""

HAN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")

Gram = tuple[str, ...]
Pairs = set[tuple[int, int]]


def near_duplicate_contest(texts: Sequence[str], count: int, rounds: int) -> None:
    """Print each contender's documents per CPU second and per second of wall time, recall and precision."""
    logger.remove()
    texts, pairs = planted(texts, count)
    sets = [grams(words_of(text)) for text in texts]
    true_pairs = {(i, j) for i, j in pairs if similarity(sets[i], sets[j]) >= THRESHOLD}
    shingle(texts[:10], NGRAM)  # builds the character table once
    found: dict[str, list[int]] = {}

    def ours() -> None:
        found["cupola"] = first_members(len(texts), cupola_pairs(texts))

    def datasketch() -> None:
        found["datasketch"] = first_members(len(texts), datasketch_pairs(texts))

    def datatrove() -> None:
        found["datatrove"] = first_members(len(texts), datatrove_pairs(texts))

    spent = interleaved({"cupola": ours, "datasketch": datasketch, "datatrove": datatrove}, rounds)
    size = sum(len(text.encode()) for text in texts) / 1e6
    han = {i for i, text in enumerate(texts) if len(HAN.findall(text)) > 0.3 * len(text)}
    print(
        f"near duplicates: {len(texts):,} documents ({len(han):,} Chinese or Japanese), {size:.1f} MB, "
        f"{len(true_pairs):,} planted at {THRESHOLD} and above ({sum(i in han for i, _ in true_pairs):,})"
    )
    for name, of in spent.items():
        recall = sum(found[name][i] == found[name][j] for i, j in true_pairs) / len(true_pairs)
        print(
            f"  {name:11} {len(texts) / of.processor:9,.0f} documents/s of processor time, {len(texts) / of.wall:9,.0f} "
            f"of the clock   recall {recall:.3f}   precision {precision(found[name], sets):.3f}"
        )
    for peer in ("datasketch", "datatrove"):
        cpu, wall = spent[peer].processor / spent["cupola"].processor, spent[peer].wall / spent["cupola"].wall
        print(f"  ratio to {peer}: {cpu:.1f} of processor time, {wall:.1f} of the clock")


def planted(texts: Sequence[str], count: int) -> tuple[list[str], Pairs]:
    """`count` texts of at most `WORDS` words, in fives of four real ones and an edited copy, and the planted pairs."""
    rng = random.Random(0)
    passages = [passage for text in texts for passage in cut(text)]
    rng.shuffle(passages)
    vocabulary = [word for passage in passages[:500] for word in words_of(passage)]
    out: list[str] = []
    pairs: Pairs = set()
    for passage in passages:
        if len(out) >= count:
            break
        out.append(passage)
        if len(out) % 5 == 4:
            out.append(edited(passage, rng, vocabulary))
            pairs.add((len(out) - 2, len(out) - 1))
    return out, pairs


def cut(text: str) -> list[str]:
    """Split a text into stretches of `WORDS` words."""
    starts = [match.start() for match in WORD.finditer(text)]
    edges = starts[::WORDS]
    return [text[a:b] for a, b in pairwise(edges)]


def edited(text: str, rng: random.Random, vocabulary: Sequence[str]) -> str:
    """A copy with single words replaced, at multiples of five words: each changes five shingles of both texts."""
    wanted = rng.uniform(0.7, 0.95)
    words = list(WORD.finditer(text))
    shingles = len(words) - NGRAM + 1
    replaced = max(1, round(shingles * (1 - wanted) / (NGRAM * (1 + wanted))))
    places = {NGRAM * place for place in rng.sample(range(len(words) // NGRAM), replaced)}
    out, end = [], 0
    for place, word in enumerate(words):
        out.append(text[end : word.start()])
        out.append(rng.choice(vocabulary) if place in places else word[0])
        end = word.end()
    return "".join([*out, text[end:]])


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def grams(words: Sequence[str]) -> set[Gram]:
    return set(zip(*(islice(words, start, None) for start in range(NGRAM)), strict=False))


def similarity(a: set[Gram], b: set[Gram]) -> float:
    return len(a & b) / max(len(a | b), 1)


def first_members(count: int, pairs: Pairs) -> list[int]:
    """For each text, the first member of its cluster, given matching pairs."""
    parents = list(range(count))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for i, j in pairs:
        a, b = root(i), root(j)
        parents[max(a, b)] = min(a, b)
    return [root(i) for i in range(count)]


def precision(first: Sequence[int], sets: Sequence[set[Gram]]) -> float:
    """The share of removed documents with a true near-duplicate in their cluster."""
    clusters: dict[int, list[int]] = defaultdict(list)
    for i, of in enumerate(first):
        clusters[of].append(i)
    removed = [i for i, of in enumerate(first) if i != of]
    right = sum(any(j != i and similarity(sets[i], sets[j]) >= THRESHOLD for j in clusters[first[i]]) for i in removed)
    return right / max(len(removed), 1)


def cupola_pairs(texts: Sequence[str]) -> Pairs:
    """The pairs of a preparation's own steps, run in this process: each duplicate with the first of its cluster."""
    config = DeduplicationConfig(threshold=THRESHOLD, num_permutations=PERMUTATIONS, ngram=NGRAM)
    documents = [OurDocument("s", str(i), 0, text, len(text.encode())) for i, text in enumerate(texts)]
    bands = PERMUTATIONS // rows_per_band(THRESHOLD, PERMUTATIONS)
    with tempfile.TemporaryDirectory() as folder:
        signatures, candidates, near = Path(folder, "signatures"), Path(folder, "candidates"), Path(folder, "near")
        for _ in Signatures(config, 0, signatures).run(documents):
            pass
        for band in range(bands):
            list(FindSimilar(signatures, 1, candidates).run(None, band, bands))
        list(Cluster(signatures, 1, candidates, THRESHOLD, near).run(None))
        return {(first, number) for number, first in np.load(near / "00000.npy").tolist()}


def datasketch_pairs(texts: Sequence[str]) -> Pairs:
    """The pairs that datasketch's LSH finds."""
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(16, 7))
    pairs: Pairs = set()
    for i, text in enumerate(texts):
        words = words_of(text)
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch({" ".join(words[j : j + NGRAM]).encode() for j in range(len(words) - NGRAM + 1)})
        pairs.update((j, i) for j in index.query(signature))
        index.insert(i, signature)
    return pairs


class _Words(WordTokenizer):  # type: ignore[misc]
    """A tokenizer for datatrove, whose own ones need model packages and are slower."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def _xxhash64(text: str) -> int:
    """Replaces datatrove's hash, which passes a string that xxhash 4 refuses."""
    return int(xxhash.xxh64_intdigest(text.encode()))


def datatrove_pairs(texts: Sequence[str]) -> Pairs:
    """The pairs of datatrove's three steps, run in this process without an executor: each document with the first of
    its cluster."""
    config = MinhashConfig(n_grams=NGRAM, num_buckets=14, hashes_per_bucket=PERMUTATIONS // 14)
    with tempfile.TemporaryDirectory() as folder:
        documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
        signature = MinhashDedupSignature(f"{folder}/signatures", config, language=_Words())
        signature._hash_func = _xxhash64
        signature.run(iter(documents), 0, 1)
        for rank in range(config.num_buckets):
            MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/pairs", config=config).run(None, rank, 14)
        cluster = MinhashDedupCluster(f"{folder}/pairs", f"{folder}/removed", config=config, save_cluster_id=True)
        cluster.run(None, 0, 1)
        numbers = Path(folder, "removed", "000000.clusters").read_bytes()
    first: dict[int, int] = {}
    pairs: Pairs = set()
    fields = [int.from_bytes(numbers[i : i + 4], "little") for i in range(0, len(numbers), 4)]
    for document, number in zip(fields[::2], fields[1::2], strict=True):
        if number in first:
            pairs.add((first[number], document))
        first.setdefault(number, document)
    return pairs
