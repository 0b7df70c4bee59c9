"""Chat templates that write today's date get the recipe's date, or are refused."""

import json
import re
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from cupola_platform import json_lines
from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, OptimizerConfig, SftData, TrainJob
from cupola_trainer.conversion.exporting import export
from cupola_trainer.data.chat import encode_conversation, encode_prompt
from cupola_trainer.data.conversations import load_conversations
from cupola_trainer.data.tokenizer_folders import keep_date, load_tokenizer, tokenizer_of
from cupola_trainer.training import loop
from cupola_trainer.training.identity import data_identity

ASKED = [{"role": "user", "content": "Hi"}]
TALK = [*ASKED, {"role": "assistant", "content": "Hello"}]
ONE = LayoutConfig()
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML
MISTRAL = (
    "\n{%- set today = strftime_now('%Y-%m-%d') %}\n{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\nIt is ' + today + '.<|im_end|>\n' }}{%- endif %}" + CHATML
)
SPELT = "Now: {{ strftime_now('%A, %-d %B %Y at %H:%M, day %j, 100%%') }}\n" + CHATML
LLAMA31 = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}\n" + CHATML
)
GIVEN = "{{ 'It is ' + datetime + '.' }}\n" + CHATML


class Clock(datetime):
    """transformers' clock, set to a fixed date."""

    year_of_test = 2030

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        return cls(cls.year_of_test, 5, 6, 7, 8, 9, tzinfo=tz)


@pytest.fixture(params=[2030, 2031])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "year_of_test", request.param)
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    assert chat_template_utils._compile_jinja_template("{{ strftime_now('%Y') }}").render() == str(request.param)


def dated(folder: Path, template: str, day: date | None = None) -> Any:
    tokenizer = load_tokenizer(folder, day)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAMA, "<|im_start|>system\nToday is 05 Nov 2026<|im_end|>\n<|im_start|>user"),
        (MISTRAL, "<|im_start|>system\nIt is 2026-11-05.<|im_end|>\n<|im_start|>user"),
        (SPELT, "Now: Thursday, 5 November 2026 at 00:00, day 309, 100%\n<|im_start|>user"),
        ("\n\n " + LLAMA, "\n\n <|im_start|>system\nToday is 05 Nov 2026<|im_end|>\n<|im_start|>user"),
        (LLAMA31, "05 Nov 2026\n<|im_start|>user"),
        (GIVEN, "It is 2026-11-05 00:00:00.\n<|im_start|>user"),
    ],
    ids=["llama", "mistral", "all spelt out", "white space first", "llama 3.1", "a variable"],
)
def test_a_template_writes_the_recipes_date_on_any_day(chat_tokenizer_folder: Path, template: str, text: str) -> None:
    tokenizer = dated(chat_tokenizer_folder, template, date(2026, 11, 5))
    assert tokenizer.decode(encode_prompt(tokenizer, ASKED)) == text + "\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_published_templates_render_as_transformers_does_on_that_day(
    chat_tokenizer_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is transformers itself, with its clock set to that date."""
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    ours = dated(chat_tokenizer_folder, template, date(2030, 5, 6))
    text = ours.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert re.search("06 May 2030|2030-05-06", text)
    assert ours.decode(encode_prompt(ours, ASKED)) == text


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("template", [LLAMA, MISTRAL, GIVEN], ids=["llama", "mistral", "a variable"])
def test_without_a_date_it_is_refused_with_the_setting_to_use(
    chat_tokenizer_folder: Path, tmp_path: Path, template: str
) -> None:
    tokenizer = dated(chat_tokenizer_folder, template)
    for encode in (lambda: encode_conversation(tokenizer, TALK), lambda: encode_prompt(tokenizer, ASKED)):
        with pytest.raises(
            ConfigError, match=r"writes today's date.* Set `template_date`, such as 2026-11-30, in the recipe"
        ):
            encode()
    json_lines.write(tmp_path / "train.jsonl", [{"messages": TALK}])
    with pytest.raises(ConfigError, match="Set `template_date`"):  # the job ends instead of dropping rows
        load_conversations(tmp_path / "train.jsonl", tokenizer, 64)


def test_a_template_without_a_date_needs_none(chat_tokenizer_folder: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, *ASKED]
    lazy = MISTRAL.replace("{%- set today = strftime_now('%Y-%m-%d') %}", "").replace("today", "strftime_now('%Y')")
    tokenizer = dated(chat_tokenizer_folder, lazy)
    assert "Be brief." in tokenizer.decode(encode_prompt(tokenizer, system))
    constant = dated(chat_tokenizer_folder, LLAMA31)
    assert constant.decode(encode_prompt(constant, ASKED)).startswith("26 Jul 2024\n")
    with pytest.raises(ConfigError, match="Set `template_date`"):
        encode_prompt(tokenizer, ASKED)


def test_a_date_is_saved_with_the_tokenizer_and_can_be_replaced(chat_tokenizer_folder: Path, tmp_path: Path) -> None:
    kept = keep_date(chat_tokenizer_folder, date(2026, 11, 5), tmp_path / "a" / "tokenizer")
    assert load_tokenizer(kept).init_kwargs["template_date"] == "2026-11-05"
    assert load_tokenizer(kept, date(2027, 1, 2)).init_kwargs["template_date"] == "2027-01-02"
    shutil.copytree(chat_tokenizer_folder, tmp_path / "b" / "tokenizer")
    assert tokenizer_of([tmp_path / "b", tmp_path / "a"]) == kept
    assert tokenizer_of([tmp_path / "b"]) == tmp_path / "b" / "tokenizer"
    assert tokenizer_of([tmp_path]) is None


MODEL = ModelConfig(
    vocab_size=1024, hidden_size=32, num_layers=1, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=64,
    max_position_embeddings=64, rope_theta=10_000.0,
)  # fmt: skip


def test_a_checkpoint_keeps_its_training_date_also_when_exported(chat_tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer_folder)
    tokenizer.chat_template = LLAMA
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    runtime.start(ONE, seed=0)
    checkpoint.save(
        tmp_path / "start", models.build(MODEL, ONE, seed=1), model=MODEL, layout=ONE, step=0, consumed_samples=0,
        seed=1, objective="next_token", tokenizer=tmp_path / "tokenizer",
    )  # fmt: skip
    runtime.stop()
    (tmp_path / "data").mkdir()
    for split in ("train", "heldout"):
        json_lines.write(tmp_path / "data" / f"{split}.jsonl", [{"messages": TALK}] * 2)
    job = TrainJob(
        output=tmp_path / "job", parent=tmp_path / "start", steps=1, template_date=date(2026, 11, 5),
        batch=BatchConfig(sequence_length=48, micro_batch_size=1, global_batch_size=1),
        optimizer=OptimizerConfig(lr=1e-3), data=SftData(conversations=tmp_path / "data"),
    )  # fmt: skip
    job.output.mkdir()
    assert data_identity(job)["template_date"] == "2026-11-05"
    assert loop.train(job, lambda: False)
    runtime.stop()
    trained = job.output / "checkpoints" / "step_00000001"
    ours = load_tokenizer(trained / "tokenizer")
    assert "Today is 05 Nov 2026" in ours.decode(encode_prompt(ours, ASKED))
    assert "template_date" not in json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    export(trained, tmp_path / "theirs")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    rendered = theirs.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert re.fullmatch(
        r"<\|im_start\|>system\nToday is \d\d \w+ \d{4}<\|im_end\|>\n<\|im_start\|>user\nHi<\|im_end\|>\n.*\n", rendered
    )
    assert load_tokenizer(tmp_path / "theirs").init_kwargs["template_date"] == "2026-11-05"
