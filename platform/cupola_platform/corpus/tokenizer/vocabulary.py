"""The tokenizer's vocabulary: from this corpus, from another vocabulary, or both."""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.corpus.core.qwen_tokenizer import (
    CONTROL_TOKENS,
    add_control_tokens,
    new_tokenizer,
    save_tokenizer,
    vocabulary_rows,
)
from cupola_platform.corpus.tokenizer.bpe_training import count_words, learn_merges
from cupola_platform.corpus.tokenizer.encoding import merges_of_words, splits_as_qwen
from cupola_platform.corpus.tokenizer.ranks import (
    byte_letters,
    bytes_of_letters,
    follows_its_ranks,
    merges_of,
    read_ranks,
    vocabulary_file,
)
from cupola_platform.errors import ConfigError

ROW_MULTIPLE = 64
"""Embedding rows are padded to a multiple of this, for the tensor-parallel split and the GPU's tiles."""


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str], folder: Path) -> int:
    """Train the vocabulary on `texts` or load it, save the tokenizer in `folder`, and return its rows, padded to a
    multiple of 64."""
    if config.vocabulary == "trained":
        base = open_vocabulary(vocabulary_file(config.base)) if config.base else None
        tokenizer = train_tokenizer(texts, config.vocab_size, base)
    else:
        tokenizer = open_vocabulary(vocabulary_file(config.vocabulary))
    tokenizer_json = tokenizer.to_str()
    save_tokenizer(tokenizer_json, folder)
    return -(-vocabulary_rows(tokenizer_json) // ROW_MULTIPLE) * ROW_MULTIPLE


def train_tokenizer(texts: Iterable[str], vocab_size: int, base: Tokenizer | None = None) -> Tokenizer:
    """Learn merges until the vocabulary has `vocab_size` rows, including control tokens. The ids of `base` stay.

    Raises:
        ConfigError: the base leaves no room, or cannot be extended.
    """
    if base is None:
        tokens = [bytes_of_letters(letter) for letter in sorted(byte_letters().values())]
        merges: list[tuple[bytes, bytes]] = []
    else:
        tokens = _extensible(base, vocab_size)
        merges = merges_of({token: i for i, token in enumerate(tokens)})
    counts = count_words(unicodedata.normalize("NFC", text) for text in texts)
    room = vocab_size - len(CONTROL_TOKENS) - len(tokens)
    learned = learn_merges(counts, _parts(counts, tokens, base), len(tokens), room)
    for first, second in learned:
        merges.append((tokens[first], tokens[second]))
        tokens.append(tokens[first] + tokens[second])
    return _byte_level({token: i for i, token in enumerate(tokens)}, merges)


def _parts(words: Collection[bytes], tokens: list[bytes], base: Tokenizer | None) -> Iterator[list[int]]:
    if base is None:
        of_byte = {token[0]: i for i, token in enumerate(tokens)}
        yield from ([of_byte[byte] for byte in word] for word in words)
        return
    data = np.frombuffer(b"".join([*words, bytes(16)]), np.uint8)
    lengths = np.array(list(map(len, words)), np.int64)
    ids, counts = merges_of_words(base)((data, np.cumsum(lengths) - lengths, lengths))
    yield from (part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1]))


def _extensible(base: Tokenizer, vocab_size: int) -> list[bytes]:
    ranks = follows_its_ranks(base) if splits_as_qwen(base) else None
    if ranks is None or sorted(ranks.values()) != list(range(len(ranks))):
        raise ConfigError(
            "tokenizer.base cannot be extended: it is not a byte-level vocabulary with Qwen's pre-tokenization and ids "
            "from 0. Give a .tiktoken file, or train without a base."
        )
    if vocab_size <= len(ranks) + len(CONTROL_TOKENS):
        least = -(-(len(ranks) + len(CONTROL_TOKENS) + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size} has no room beyond the {len(ranks):,} tokens of tokenizer.base and "
            f"{len(CONTROL_TOKENS)} control tokens. Try vocab_size={least} or more."
        )
    return sorted(ranks, key=ranks.__getitem__)


def _byte_level(ranks: Mapping[bytes, int], merges: Iterable[tuple[bytes, bytes]]) -> Tokenizer:
    letters = byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    return new_tokenizer(vocabulary, [(spelled[first], spelled[second]) for first, second in merges])


def open_vocabulary(path: Path) -> Tokenizer:
    """The tokenizer of a `.tiktoken` file, with Qwen's pre-tokenization, or of a `tokenizer.json`, with its own."""
    if path.suffix != ".json":
        ranks = read_ranks(path)
        return _byte_level(ranks, merges_of(ranks))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  tokenizers raises nothing narrower
        raise ConfigError(f"tokenizer.vocabulary={str(path)!r} is not a tokenizer.json: {error}.") from None
    add_control_tokens(tokenizer)
    return tokenizer
