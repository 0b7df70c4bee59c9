"""Byte-level BPE the way Qwen does it, trained here or taken from Qwen, saved for transformers' AutoTokenizer."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokenization: words with the character before them, digits singly, runs of signs, white space."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML. The generation block is what a model learns to say, its end included (`return_assistant_tokens_mask`)."""

Merge = tuple[str, str]


def new_tokenizer(vocabulary: dict[str, int] | None = None, merges: Sequence[Merge] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer with Qwen's normalization and pre-tokenization; control tokens come last."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary or {}, merges=list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if vocabulary:
        add_control_tokens(tokenizer)
    return tokenizer


def add_control_tokens(tokenizer: Tokenizer) -> None:
    """Append the three control tokens: in Qwen's own vocabulary they get 151643 to 151645."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])


def train_tokenizer(work: tuple[Sequence[str], int]) -> str:
    """Learn merges from texts until the vocabulary has the given rows, control tokens included; as JSON.

    Called in a worker process of its own, where it may use all cores.
    """
    texts, vocab_size = work
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    add_control_tokens(tokenizer)
    return str(tokenizer.to_str())


def save_tokenizer(tokenizer_json: str, folder: Path) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` loads: pad with <|endoftext|>, end with <|im_end|>."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "additional_special_tokens": [IM_START, IM_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def vocabulary_rows(tokenizer_json: str) -> int:
    """Ids of a tokenizer, control tokens included."""
    return int(Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True))
