"""Text to token ids, exactly as the tokenizer gives them but many times faster.

Most words of a corpus were seen before. A batch of documents is split into words by a few passes over arrays
(`splitting`), and each word is looked up by its bytes (`word_table`). Only new words go through the merges: by tiktoken
if it provably gives the same result, else by the tokenizer. The tokenizer itself encodes everything if its
normalization or pre-tokenization differs from Qwen's, and any text that contains one of its added tokens.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cupola_platform.corpus.core.qwen_tokenizer import END_OF_TEXT, IM_END, IM_START, PATTERN
from cupola_platform.corpus.tokenizer.ranks import byte_letters, follows_its_ranks
from cupola_platform.corpus.tokenizer.splitting import bytes_and_words
from cupola_platform.corpus.tokenizer.word_table import LONGEST, WordTable, keys_of, mixed

BATCH_CHARACTERS = 1 << 17
"""Characters split at once; the arrays take about 50 bytes per character."""

Words = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""Bytes, and the starts and lengths of the words in them."""
Merge = Callable[[Words], "Encoded"]
Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]


class DocumentEncoder:
    """Encodes whole texts to the same ids as SFT, inference and the `tokenizers` library.

    Control tokens (special added tokens) that occur in a document stay text, as with `split_special_tokens` in
    transformers; in a conversation, only those of the chat template are control tokens. Other added tokens, such as
    GPT-NeoX's runs of spaces, are encoded as by the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = _taking_as_text(tokenizer)
        self._of_conversations = _taking_as_text(tokenizer, but={IM_START, IM_END})
        self._added = _plain_added_tokens(tokenizer)
        self._end: int = tokenizer.token_to_id(END_OF_TEXT)
        self._merge = merges_of_words(tokenizer) if splits_as_qwen(tokenizer) else None
        self._table = WordTable(self._end)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without control tokens."""
        ids, _ = self.documents([text])
        return [int(token) for token in ids[:-1]]

    def documents(self, texts: Sequence[str]) -> Encoded:
        """The ids of all texts with <|endoftext|> after each, shape [tokens], and the number per text, shape
        [texts]."""
        done, batch, size = list[Encoded](), list[str](), 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size >= BATCH_CHARACTERS:
                done.append(self._batch(batch))
                batch, size = [], 0
        ids, counts = zip(*done, self._batch(batch), strict=True)
        return np.concatenate(ids), np.concatenate(counts)

    def conversations(self, texts: Sequence[str]) -> Encoded:
        """Like `documents`, for texts rendered by the chat template."""
        return self._by_tokenizer(texts, self._of_conversations)

    def _by_tokenizer(self, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> Encoded:
        encoded = [of.ids for of in (tokenizer or self._tokenizer).encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.array([len(ids) + 1 for ids in encoded])
        return np.array([token for ids in encoded for token in (*ids, self._end)], np.int32), counts

    def _batch(self, texts: Sequence[str]) -> Encoded:
        if not texts:
            return np.empty(0, np.int32), np.empty(0, np.int64)
        if self._merge is None:
            return self._by_tokenizer(texts)
        normal = [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts]
        if self._holds_added(texts, normal) or has_unknown(texts):
            return self._each(texts)
        ends = np.cumsum([len(text) + 1 for text in normal]) - 1
        data, starts = bytes_and_words("\0".join([*normal, ""]), ends)
        return self._encode(data, starts, np.searchsorted(starts[0], ends))

    def _holds_added(self, texts: Sequence[str], normal: Sequence[str]) -> bool:
        """Whether the texts may contain added tokens, as they are or after normalization."""
        if self._added is None:
            return False
        search = self._added.search
        return any(
            search(text) or (not text.isascii() and search(other)) for text, other in zip(texts, normal, strict=True)
        )

    def _each(self, texts: Sequence[str]) -> Encoded:
        """Encode texts one by one, so that only those that need the tokenizer are slow."""
        if len(texts) == 1:
            return self._by_tokenizer(texts)
        ids, counts = zip(*(self._batch([text]) for text in texts), strict=True)
        return np.concatenate(ids), np.concatenate(counts)

    def _encode(
        self, data: NDArray[np.uint8], words: tuple[NDArray[np.int64], NDArray[np.int64]], last: NDArray[np.int64]
    ) -> Encoded:
        """`words`: the start of each word in characters and in bytes; `last`: which words are ends of documents."""
        assert self._merge is not None
        starts = words[1]
        lengths = np.diff(starts, append=len(data) - 16)
        short = lengths <= LONGEST
        short[last] = False
        places, counts = np.zeros((2, len(starts)), np.int32)
        places[short], counts[short] = self._look_up((data, starts[short], lengths[short]))
        counts[last] = 1
        long = lengths > LONGEST
        if not long.any():
            ids = self._table.ids[_spread(places, counts)]
        else:
            ids_of_long, counts[long] = self._merge((data, starts[long], lengths[long]))
            is_long = np.repeat(long, counts)
            ids = np.empty(len(is_long), np.int32)
            ids[~is_long] = self._table.ids[_spread(places[~long], counts[~long])]
            ids[is_long] = ids_of_long
        return ids, np.diff(np.cumsum(counts, dtype=np.int64)[last], prepend=0)

    def _look_up(self, words: Words) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The position and number of each word's ids in the table."""
        assert self._merge is not None
        if self._table.full:
            self._table.clear()
        data, starts, lengths = words
        keys = keys_of(data, starts, lengths)
        places, counts = self._table.find(keys)
        while len(unknown := np.flatnonzero(counts == 0)):  # repeats if two new words have the same hash
            new = unknown[np.unique(mixed((keys[0][unknown], keys[1][unknown])), return_index=True)[1]]
            self._table.add((keys[0][new], keys[1][new]), *self._merge((data, starts[new], lengths[new])))
            places[unknown], counts[unknown] = self._table.find((keys[0][unknown], keys[1][unknown]))
        return places, counts


def _taking_as_text(tokenizer: Tokenizer, *, but: Collection[str] = ()) -> Tokenizer:
    """A copy that treats control tokens except `but` as text, and never truncates or pads."""
    settings = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
    for token in settings["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in but
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.encode_special_tokens = True
    return copy


def _plain_added_tokens(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """A pattern of added tokens that are not special, as written or in NFC; None if there are none."""
    contents = {token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special}
    spellings = contents | {unicodedata.normalize("NFC", content) for content in contents}
    return re.compile("|".join(map(re.escape, sorted(spellings)))) if spellings else None


def has_unknown(texts: Sequence[str]) -> bool:
    """Whether the texts may contain characters newer than Python's Unicode tables, which only the tokenizer can
    classify."""
    points = np.frombuffer("".join(text for text in texts if not text.isascii()).encode("utf-32-le"), "<u4")
    return bool(_unassigned()[points].any())


@cache
def _unassigned() -> NDArray[np.bool_]:
    return np.fromiter((unicodedata.category(point) == "Cn" for point in map(chr, range(0x110000))), bool, 0x110000)


def splits_as_qwen(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer normalizes and splits like Qwen's, with a byte-level vocabulary."""
    settings: dict[str, Any] = json.loads(tokenizer.to_str())
    steps = (settings["pre_tokenizer"] or {}).get("pretokenizers", ())
    if settings["model"]["type"] != "BPE" or len(steps) != 2 or (settings["normalizer"] or {}).get("type") != "NFC":
        return False
    split, letters = steps
    plain = all(
        not settings["model"].get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    return (
        plain
        and split.get("pattern") == {"Regex": PATTERN}
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and (letters["type"], letters["add_prefix_space"], letters["use_regex"]) == ("ByteLevel", False, False)
    )


def merges_of_words(tokenizer: Tokenizer) -> Merge:
    """A function from words to ids: tiktoken if the merges follow from the ranks, else the tokenizer's model."""
    ranks = follows_its_ranks(tokenizer)
    letters, model = byte_letters(), tokenizer.model

    def by_model(words: Words) -> Encoded:
        texts = (words[0][start : start + length].tobytes() for start, length in zip(*words[1:], strict=True))
        ids = [[token.id for token in model.tokenize(text.decode("latin-1").translate(letters))] for text in texts]
        return np.concatenate([np.array(of, np.int32) for of in ids]), np.array(list(map(len, ids)))

    if ranks is None:
        return by_model
    encoding = tiktoken.Encoding("words", pat_str=r"\x00|[^\x00]+", mergeable_ranks=ranks, special_tokens={})
    between = ranks[b"\0"]

    def by_ranks(words: Words) -> Encoded:
        """Encode all words in one call, with NUL after each."""
        data, starts, lengths = words
        joined = data[_spread(starts, lengths + 1)]
        joined[np.cumsum(lengths + 1) - 1] = 0
        ids = encoding.encode_to_numpy(joined.tobytes().decode(), disallowed_special=()).astype(np.int32)
        ends = np.flatnonzero(ids == between)
        if len(ends) != len(starts):  # a word contains NUL
            return by_model(words)
        return ids[ids != between], np.diff(ends, prepend=-1) - 1

    return by_ranks


def _spread(places: NDArray[np.signedinteger], counts: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    """The indices places[0], places[0] + 1, ... (counts[0] of them), then from places[1], ... Shape [sum of counts]."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(places - (ends - counts), counts)


@cache
def encoder_of(folder: str) -> DocumentEncoder:
    """The encoder of a tokenizer's folder, cached per worker."""
    return DocumentEncoder(Tokenizer.from_file(f"{folder}/tokenizer.json"))
