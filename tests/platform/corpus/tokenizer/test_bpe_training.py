"""Training a vocabulary: equal to tokenizers' trainer, on top of another one, without overflow, in bounded memory."""

import random
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, trainers

from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.corpus.core.qwen_tokenizer import new_tokenizer
from cupola_platform.corpus.tokenizer.bpe_training import count_words, learn_merges
from cupola_platform.corpus.tokenizer.encoding import DocumentEncoder
from cupola_platform.corpus.tokenizer.ranks import check_vocabulary, follows_its_ranks
from cupola_platform.corpus.tokenizer.vocabulary import make_tokenizer, train_tokenizer
from cupola_platform.errors import ConfigError


def texts() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    code = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:20]]
    return [*code, "今天天气很好，我们去公园散步吧。" * 20, "Ünïcödé é " * 30, "aaaa aaaaa bbbb\n\n\n    xx" * 50]


def regular(tokenizer: Tokenizer) -> dict[str, int]:
    return dict(tokenizer.get_vocab(with_added_tokens=False))


def test_the_vocabulary_equals_that_of_tokenizers_trainer() -> None:
    ours = train_tokenizer(texts(), 800)
    theirs = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=800 - 22, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    theirs.train_from_iterator(texts(), trainer)
    assert regular(ours) == dict(theirs.get_vocab())
    assert follows_its_ranks(ours) is not None


def test_a_base_keeps_its_ids_and_what_is_trained_on_on_top_of_it_is_what_one_training_learns(tmp_path: Path) -> None:
    small = make_tokenizer(TokenizerConfig(vocab_size=448), texts(), tmp_path / "small")
    assert small == 448
    config = TokenizerConfig(vocab_size=768, base=tmp_path / "small")
    assert make_tokenizer(config, texts(), tmp_path / "large") == 768
    extended = Tokenizer.from_file(str(tmp_path / "large" / "tokenizer.json"))
    base = Tokenizer.from_file(str(tmp_path / "small" / "tokenizer.json"))
    assert regular(base).items() < regular(extended).items()
    assert regular(extended) == regular(train_tokenizer(texts(), 768))


def test_a_base_without_room_or_with_a_fixed_vocabulary_is_refused(tmp_path: Path) -> None:
    make_tokenizer(TokenizerConfig(vocab_size=448), texts(), tmp_path / "small")
    with pytest.raises(ConfigError, match=r"vocab_size=448 has no room beyond the 426 tokens .* Try vocab_size=512"):
        make_tokenizer(TokenizerConfig(vocab_size=448, base=tmp_path / "small"), texts(), tmp_path / "no")
    with pytest.raises(ConfigError, match=r"tokenizer\.base=.* extends a trained vocabulary"):
        check_vocabulary(TokenizerConfig(vocabulary=tmp_path / "small", base=tmp_path / "small"))


def textbook(words: dict[bytes, int], count: int) -> list[tuple[int, int]]:
    """A reference that recounts all pairs for every merge."""
    parts, merges = [list(word) for word in words], list[tuple[int, int]]()
    while len(merges) < count:
        counts: Counter[tuple[int, int]] = Counter()
        for ids, often in zip(parts, words.values(), strict=True):
            for pair in pairwise(ids):
                counts[pair] += often
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for number, ids in enumerate(parts):
            joined: list[int] = []
            while ids:
                step = 2 if tuple(ids[:2]) == best else 1
                joined.append(255 + len(merges) if step == 2 else ids[0])
                ids = ids[step:]
            parts[number] = joined
    return merges


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=12).map(str.encode), st.integers(1, 3), max_size=12))
@example({b"aaaa": 1})
@example({b"aaaaa": 2, b"abababa": 1})
def test_merges_match_the_textbook_algorithm_until_no_pair_is_left(words: dict[bytes, int]) -> None:
    assert learn_merges(words, [list(word) for word in words], 256, 30) == textbook(words, 30)


def test_counts_beyond_32_bits_do_not_overflow() -> None:
    words = {b"ab": 2**32 + 1, b"cd": 2**32, b"ce": 7}
    assert learn_merges(words, [[0, 1], [2, 3], [2, 4]], first=5, count=9) == [(0, 1), (2, 3), (2, 4)]


def test_words_that_exceed_memory_are_counted_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola_platform.corpus.tokenizer.bpe_training.BATCH_CHARACTERS", 5_000)
    everything = count_words(texts())
    assert sum(everything.values()) > 100_000
    most = sorted(everything.items(), key=lambda of: (-of[1], of[0]))[:300]
    assert list(count_words(texts(), max_words=300).items()) == most
    assert count_words(texts(), max_words=100_000) == everything


def test_words_are_counted_as_the_tokenizer_splits_them() -> None:
    split = new_tokenizer().pre_tokenizer
    counted = count_words(["it's  a\n\n day, it's\0 0123456789abcdefgh ", "今天 it's"])
    letters = {word: count for word, count in counted.items() if b"\0" not in word}
    assert letters == {
        b"it": 1, b"'s": 3, b" ": 3, b" a": 1, b"\n\n": 1, b" day": 1, b",": 1, b" it": 2, b"abcdefgh": 1,
        "今天".encode(): 1, **{str(digit).encode(): 1 for digit in range(10)},
    }  # fmt: skip
    assert len(split.pre_tokenize_str("it's  a\n\n day, it's\0 0123456789abcdefgh ")) == sum(counted.values()) - 3


def test_an_imported_tokenizer_keeps_its_own_pre_tokenization(tmp_path: Path) -> None:
    theirs = new_tokenizer({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))})
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    theirs.train_from_iterator(texts(), trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    rows = make_tokenizer(TokenizerConfig(vocabulary=tmp_path / "tokenizer.json"), [], tmp_path / "made")
    assert rows == 448
    made = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    encoder = DocumentEncoder(made)
    plain = [text.replace("<|", "") for text in texts()]
    ids, _ = encoder.documents(plain)
    assert ids.tolist() == [token for text in plain for token in (*theirs.encode(text).ids, 400)]
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"broken\.json' is not a tokenizer\.json"):
        make_tokenizer(TokenizerConfig(vocabulary=tmp_path / "broken.json"), [], tmp_path / "made")


def test_what_is_trained_on_does_not_depend_on_the_order_of_the_texts(tmp_path: Path) -> None:
    shuffled = texts()
    random.Random(0).shuffle(shuffled)
    config = TokenizerConfig(vocab_size=448)
    make_tokenizer(config, texts(), tmp_path / "a")
    make_tokenizer(config, shuffled, tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
