"""Near-duplicate removal against datasketch, tokenization against tiktoken and tokenizers: same input, same run, interleaved.

    python benchmarks/corpus.py [--documents 4000] [--megabytes 6] [--rounds 3]

Speeds are per second of processor time of one core; the best of the rounds counts for everyone. Prints the ratios.
"""

import argparse
import os
import random
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tiktoken
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.corpus.deduplication import near_duplicates
from cupola_platform.corpus.encoding import DocumentEncoder
from cupola_platform.corpus.ranks import byte_letters
from cupola_platform.corpus.tokenization import END_OF_TEXT, PATTERN
from cupola_platform.corpus.vocabulary import make_tokenizer

THRESHOLD, PERMUTATIONS, NGRAM, WORDS = 0.8, 112, 5, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--megabytes", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    deduplication(arguments.documents, arguments.rounds)
    tokenization(arguments.megabytes, arguments.rounds)


def deduplication(count: int, rounds: int) -> None:
    """Documents per second end to end, and the share of the true near-duplicate pairs that each finds."""
    texts, pairs = planted(count)
    near_duplicates(texts[:10])  # builds the table of characters once
    found: dict[str, set[tuple[int, int]]] = {}

    def ours() -> None:
        first = near_duplicates(texts, threshold=THRESHOLD, num_permutations=PERMUTATIONS, ngram=NGRAM)
        found["cupola"] = {(i, j) for i, j in pairs if first[i] == first[j]}

    def theirs() -> None:
        found["datasketch"] = datasketch_pairs(texts) & pairs

    seconds = interleaved({"cupola": ours, "datasketch": theirs}, rounds)
    for name, spent in seconds.items():
        print(
            f"near duplicates  {name:11} {count / spent:9,.0f} documents/s   recall {len(found[name]) / len(pairs):.3f}"
        )
    print(f"near duplicates  ratio to datasketch {seconds['datasketch'] / seconds['cupola']:.1f}\n")


def datasketch_pairs(texts: Sequence[str]) -> set[tuple[int, int]]:
    """The pairs that datasketch's LSH finds."""
    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    pairs: set[tuple[int, int]] = set()
    for i, text in enumerate(texts):
        words = text.lower().split()
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch({" ".join(words[j : j + NGRAM]).encode() for j in range(len(words) - NGRAM + 1)})
        pairs.update((j, i) for j in index.query(signature))
        index.insert(i, signature)
    return pairs


def planted(count: int) -> tuple[list[str], set[tuple[int, int]]]:
    """Random texts, every fifth an edited copy of the one before; and the pairs whose true similarity is high enough."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    texts: list[list[str]] = []
    pairs = set()
    for i in range(count):
        words = rng.choices(vocabulary, k=WORDS)
        if i % 5 == 4:
            words = list(texts[-1])
            for place in rng.sample(range(WORDS), rng.randint(1, 16)):
                words[place] = rng.choice(vocabulary)
            a, b = grams(words), grams(texts[-1])
            if len(a & b) >= THRESHOLD * len(a | b):
                pairs.add((i - 1, i))
        texts.append(words)
    return [" ".join(words) for words in texts], pairs


def grams(words: Sequence[str]) -> set[tuple[str, ...]]:
    return set(zip(*(islice(words, start, None) for start in range(NGRAM)), strict=False))


def tokenization(megabytes: float, rounds: int) -> None:
    """Megabytes of text per second, to a shard's arrays; ids should be the same for all."""
    texts = library(int(megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(TokenizerConfig(vocab_size=4096, train_bytes=2_000_000), texts, Path(folder), seed=0)
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    letters = {letter: byte for byte, letter in byte_letters().items()}
    ranks = {
        bytes(letters[letter] for letter in token): rank
        for token, rank in tokenizer.get_vocab(with_added_tokens=False).items()
    }
    encoding = tiktoken.Encoding("cupola", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids: dict[str, list[NDArray[np.integer]]] = {}

    def ours() -> None:
        encoder = DocumentEncoder(tokenizer)  # its words are learnt anew in every round
        ids["cupola"] = [encoder.document(text, "uint16") for text in texts]

    def openai() -> None:
        ids["tiktoken"] = [np.array([*encoding.encode_ordinary(text), end], np.uint16) for text in texts]

    def hugging_face() -> None:
        encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        ids["tokenizers"] = [np.array([*of, end], np.uint16) for of in encoded]

    seconds = interleaved({"cupola": ours, "tiktoken": openai, "tokenizers": hugging_face}, rounds)
    for name, spent in seconds.items():
        print(f"tokenization     {name:11} {size / spent:9.2f} MB/s   {sum(map(len, ids[name])):,} tokens")
    for peer in ("tiktoken", "tokenizers"):
        same = "equal" if all(map(np.array_equal, ids[peer], ids["cupola"])) else "not equal"
        print(f"tokenization     ratio to {peer} {seconds[peer] / seconds['cupola']:.2f}, ids {same}")


def library(size: int) -> list[str]:
    """About `size` bytes of the standard library."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if size <= 0:
            break
        if not {"site-packages", "test", "tests"} & set(path.parts):
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
            size -= path.stat().st_size
    return texts


def interleaved(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Each contender's least processor time, taking turns so that a busy machine slows all alike."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
