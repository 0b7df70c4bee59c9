"""Where the tokenizer's vocabulary comes from: this corpus, or Qwen."""

from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.corpus.pool import WorkerPool
from cupola_platform.corpus.ranks import byte_letters, merges_of, read_ranks, vocabulary_file
from cupola_platform.corpus.tokenization import new_tokenizer, save_tokenizer, train_tokenizer, vocabulary_rows

ROW_MULTIPLE = 64
"""Embedding rows come in multiples of this, for the tensor-parallel split and the GPU's tiles."""


def make_tokenizer(config: TokenizerConfig, texts: Sequence[str], folder: Path, seed: int) -> int:
    """Train or take the vocabulary, save the tokenizer in `folder`, and give its rows, padded to a multiple of 64."""
    with WorkerPool(1) as pool:  # in a process of its own: `tokenizers` warns when a process that used it forks
        if config.vocabulary == "trained":
            sample = _sample(texts, config.train_bytes, seed)
            (tokenizer,) = pool.map(train_tokenizer, [(sample, config.vocab_size)])
        else:
            (tokenizer,) = pool.map(_from_ranks, [vocabulary_file(config)])
        (rows,) = pool.map(vocabulary_rows, [tokenizer])
    save_tokenizer(tokenizer, folder)
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def _sample(texts: Sequence[str], size: int, seed: int) -> list[str]:
    """Whole texts of about `size` bytes together, drawn by digest, in the corpus's order."""
    draws = [blake3(f"{seed}:".encode() + text.encode()).digest(8) for text in texts]
    chosen: list[int] = []
    for i in sorted(range(len(texts)), key=draws.__getitem__):
        chosen.append(i)
        size -= len(texts[i].encode())
        if size <= 0:
            break
    return [texts[i] for i in sorted(chosen)]


def _from_ranks(path: Path) -> str:
    ranks = read_ranks(path)
    letters = byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    tokenizer = new_tokenizer(vocabulary, [(spelled[a], spelled[b]) for a, b in merges_of(ranks)])
    return str(tokenizer.to_str())
