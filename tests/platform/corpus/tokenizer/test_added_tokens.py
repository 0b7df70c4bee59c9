"""Tokenizers with added tokens: shards have the same ids as transformers, which SFT and inference use."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cupola_platform.corpus.core.qwen_tokenizer import PATTERN, add_control_tokens, save_tokenizer
from cupola_platform.corpus.tokenizer.encoding import DocumentEncoder
from cupola_platform.corpus.tokenizer.ranks import byte_letters

BYTES = {letter: byte for byte, letter in byte_letters().items()}
"""A vocabulary of single bytes, each its own id; added tokens follow from 256 on."""
QWENS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


def of_bytes(pre_tokenizer: Any, added: Sequence[AddedToken]) -> Tokenizer:
    """A tokenizer of bytes in NFC, with added tokens followed by those from `prepare`."""
    tokenizer = Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = (
        normalizers.NFC(),
        pre_tokenizer,
        decoders.ByteLevel(),
    )
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    add_control_tokens(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    "pre_tokenizer", [pre_tokenizers.ByteLevel(add_prefix_space=False), QWENS], ids=["GPT-2", "Qwen"]
)
def test_added_tokens_that_are_not_special_are_single_ids_and_control_tokens_stay_text(pre_tokenizer: Any) -> None:
    spaces, call = AddedToken(" " * 4, normalized=True), AddedToken("<tool_call>", normalized=False)
    encoder = DocumentEncoder(of_bytes(pre_tokenizer, [spaces, call]))
    texts = ["a    b", "<tool_call>c", "d<|im_end|>", "e"]
    ids, counts = encoder.documents(texts)
    end = 258
    assert counts.tolist() == [4, 3, 12, 2]
    assert ids.tolist() == [97, 256, 98, end, 257, 99, end, *b"d<|im_end|>", end, 101, end]


def test_added_tokens_strip_white_space_and_match_single_words_as_configured() -> None:
    mask = AddedToken("<m>", lstrip=True, rstrip=True)
    word = AddedToken("ing", single_word=True)
    encoder = DocumentEncoder(of_bytes(QWENS, [mask, word]))
    assert encoder.encode("a \n<m>  b") == [97, 256, 98]
    assert encoder.encode("ing sing") == [257, *b" sing"]


def test_added_tokens_are_found_in_normalized_text_if_configured() -> None:
    """NFC writes U+2126 (ohm) as U+03A9 (omega), and U+212A (kelvin) as K."""
    encoder = DocumentEncoder(
        of_bytes(QWENS, [AddedToken("\u03a9", normalized=True), AddedToken("\u212a", normalized=False)])
    )
    assert encoder.encode("\u2126 \u212a K") == [256, 32, 257, 32, 75]


def test_documents_are_complete_even_if_the_tokenizers_file_truncates_and_pads() -> None:
    tokenizer = of_bytes(QWENS, [])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    encoder = DocumentEncoder(tokenizer)
    assert encoder.encode("<m> abcde") == list(b"<m> abcde")
    assert encoder.conversations(["abcde", "f"])[0].tolist() == [*b"abcde", 256, *b"f", 256]


def test_only_the_chat_templates_tokens_are_control_tokens_in_a_conversation() -> None:
    eot = AddedToken("<|eot_id|>", special=True, normalized=False)
    encoder = DocumentEncoder(of_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), [eot]))
    ids, _ = encoder.conversations(["<|im_start|>user\nHi<|eot_id|><|im_end|>\n"])
    start, im_end, end = 258, 259, 257
    assert ids.tolist() == [start, *b"user\nHi<|eot_id|>", im_end, *b"\n", end]


PIECES = [
    "<tool_call>", "</tool_call>", "<m>", "<mask>", "  ", "    ", "\t\t", "ing", "\u00e9", "e\u0301", "\u212b",
    "\ufb01", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|fim_prefix|>", "12", "</s>", "\u4f60\u597d", "US", "us",
    "\n\n", "_",
]  # fmt: skip
"""Pieces of added tokens and texts."""
WORDS = ["a", "return", "sing", "Naïve", " ", "\n", "'s", "x1", ".", "🙂", "<", "|", "\u1e9b\u0323", "İ", "ß"]
TEXTS = st.lists(st.sampled_from(PIECES + WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)).map(
    "".join
)
ADDED = st.builds(
    AddedToken, st.sampled_from(PIECES), single_word=st.booleans(), lstrip=st.booleans(), rstrip=st.booleans(),
    normalized=st.booleans(), special=st.booleans(),
)  # fmt: skip
MODELS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "byte-level": lambda: (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "Qwen's": lambda: (models.BPE(), QWENS, decoders.ByteLevel()),
    "byte fallback": lambda: (
        models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True), pre_tokenizers.Metaspace(),
        decoders.Metaspace()
    ),
    "word pieces": lambda: (models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()),
}  # fmt: skip
NORMALIZERS = [
    None,
    normalizers.NFC(),
    normalizers.NFKC(),
    normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]),
]


def _as_found(token: AddedToken) -> str:
    """Key that is equal for tokens that a normalizer makes equal: `tokenizers` picks either, so only one is drawn."""
    return unicodedata.normalize("NFKD", token.content).lower()


@st.composite
def tokenizers(draw: st.DrawFn) -> Tokenizer:
    """A small tokenizer of a random family, with all kinds of added tokens and, half of the time, a length limit."""
    model, pre_tokenizer, decoder = MODELS[draw(st.sampled_from(sorted(MODELS)))]()
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC() if pre_tokenizer is QWENS else draw(st.sampled_from(NORMALIZERS))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer: Any = trainers.WordPieceTrainer if isinstance(model, models.WordPiece) else trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(decoder, decoders.ByteLevel) else []
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if not alphabet else []
    words = [" ".join(PIECES + WORDS)] * 3
    tokenizer.train_from_iterator(
        words, trainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    )
    for token in draw(st.lists(ADDED, max_size=6, unique_by=_as_found)):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    add_control_tokens(tokenizer)
    if draw(st.booleans()):
        tokenizer.enable_truncation(4)
    return tokenizer


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(tokenizers(), st.lists(TEXTS, min_size=20, max_size=20))
def test_twenty_tokenizers_give_the_same_ids_as_transformers(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, texts: list[str]
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer.to_str(), folder)
    theirs, ours = AutoTokenizer.from_pretrained(folder), DocumentEncoder(tokenizer)
    split = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    end = theirs.convert_tokens_to_ids("<|endoftext|>")
    ids, counts = ours.documents(texts)
    assert ids.tolist() == [id for of in split for id in (*of, end)]
    assert counts.tolist() == [len(of) + 1 for of in split]
    assert [ours.encode(text) for text in texts] == split
    said = [f"user\n{text}" for text in texts]
    turns = [
        f"<|im_start|>{words}<|im_end|>\n"  # as in SFT, which drops messages with control tokens
        for words in said
        if theirs.encode(words) == theirs.encode(words, split_special_tokens=True)
    ]
    assert ours.conversations(turns)[0].tolist() == [id for turn in turns for id in (*theirs.encode(turn), end)]
