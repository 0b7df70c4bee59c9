"""Write the material shared by the tests of conversion, upcycling, rollout and evaluation:
`python saved_models.py FOLDER`.

A tokenizer of 512 rows, a `tokens` and a `conversations` folder, and small checkpoints of every family, with weights
large enough that no two tokens are nearly tied.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from cupola_platform.corpus.core.qwen_tokenizer import save_tokenizer
from cupola_platform.corpus.tokenizer.vocabulary import train_tokenizer
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig, MoEConfig
from cupola_trainer.config.model.positions import DynamicRope, LinearRope, Llama3Rope, YarnRope
from cupola_trainer.scoring.tasks import make_tasks

SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "num_query_groups": 2,
    "ffn_hidden_size": 160, "max_position_embeddings": 128, "rope_theta": 10_000.0,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "top_k": 2,
    "expert_ffn_hidden_size": 48,
    "shared_expert_ffn_hidden_size": 96,
}
MODELS = {
    "dense": ModelConfig(**SHAPE),
    "untied": ModelConfig(**SHAPE, tie_embeddings=False),
    "moe": ModelConfig(**SHAPE, moe=MoEConfig(**EXPERTS)),
    "moe_normalized": ModelConfig(**SHAPE, moe=MoEConfig(**EXPERTS, norm_topk_prob=True)),
    "moe_alone": ModelConfig(**SHAPE, moe=MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=48), qkv_bias=False),
    "windows": ModelConfig(**SHAPE, attention_windows=(None, 24)),
    "llama": ModelConfig(
        **SHAPE,
        qkv_bias=False,
        rope_scaling=Llama3Rope(original_max_position_embeddings=32),
    ),
    "yarn": ModelConfig(**SHAPE, rope_scaling=YarnRope(factor=4.0, original_max_position_embeddings=32)),
    "dynamic": ModelConfig(**SHAPE, rope_scaling=DynamicRope(factor=4.0, original_max_position_embeddings=32)),
    "qwen3": ModelConfig(**SHAPE, head_dim=24, qkv_bias=False, qk_norm=True, attention_windows=(24, None)),
    "qwen3_moe": ModelConfig(
        **SHAPE,
        qkv_bias=False,
        qk_norm=True,
        moe=MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=48, norm_topk_prob=True),
    ),
    "mistral": ModelConfig(**SHAPE, qkv_bias=False, head_dim=24, attention_windows=(24,)),
    "mixtral": ModelConfig(
        **SHAPE,
        qkv_bias=False,
        tie_embeddings=False,
        moe=MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=160, norm_topk_prob=True),
    ),
    "phi3": ModelConfig(**SHAPE, qkv_bias=False, tie_embeddings=False, family="phi3"),
    "gemma": ModelConfig(
        **SHAPE,
        head_dim=24,
        activation="gelu_tanh",
        zero_centered_norm=True,
        qkv_bias=False,
        scale_embeddings=True,
    ),
    "gemma3": ModelConfig(
        **SHAPE,
        head_dim=24,
        activation="gelu_tanh",
        attention_windows=(24, None),
        local_rope_theta=1000.0,
        rope_scaling=LinearRope(factor=4.0),
        query_pre_attn_scalar=20,
        zero_centered_norm=True,
        qk_norm=True,
        post_norm=True,
        qkv_bias=False,
        scale_embeddings=True,
    ),
    "olmo2": ModelConfig(**SHAPE, qkv_bias=False, joint_qk_norm=True, pre_norm=False, post_norm=True),
    "gemma2": ModelConfig(
        **SHAPE,
        head_dim=24,
        activation="gelu_tanh",
        attention_windows=(24, None),
        query_pre_attn_scalar=20,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        zero_centered_norm=True,
        post_norm=True,
        qkv_bias=False,
        scale_embeddings=True,
    ),
}


def write_checkpoints(folder: Path) -> None:
    runtime.start(LayoutConfig(), seed=0)
    for name, model in MODELS.items():
        chunks = models.build(model, LayoutConfig(), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in chunks[0].parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        checkpoint.save(
            folder / name, chunks, model=model, layout=LayoutConfig(), step=3, consumed_samples=24, seed=1,
            objective="next_token", tokenizer=folder / "tokenizer",
        )  # fmt: skip
    runtime.stop()


def write_tokens(folder: Path) -> None:
    library = Path(os.__file__).parent
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokens = folder / "tokens"
    (tokens / "shards").mkdir(parents=True)
    shutil.copytree(folder / "tokenizer", tokens / "tokenizer")
    sources = {"json": ["decoder.py", "encoder.py", "scanner.py"], "email": ["header.py", "errors.py", "charset.py"]}
    index: dict[str, Any] = {"vocab_size": len(tokenizer), "sources": {}}
    for source, names in sources.items():
        texts = [(library / source / name).read_text() for name in names]
        parts = {"train": texts[:1], "heldout": texts[1:]}
        prefix = tokens / "shards"
        index["sources"][source] = {
            split: write_shard(prefix / f"{split}-{source}", texts, tokenizer) for split, texts in parts.items()
        }
    (tokens / "index.json").write_text(json.dumps(index))


def write_shard(prefix: Path, texts: list[str], tokenizer: Any) -> dict[str, int]:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    documents = [[*tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return {
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "bytes": sum(len(text.encode()) for text in texts),
    }


def write_conversations(folder: Path) -> None:
    (folder / "conversations").mkdir()
    with (folder / "conversations" / "heldout.jsonl").open("w") as file:
        for name, config in {
            "chain_sum": {"max_terms": 2, "max_digits": 1},
            "letter_counting": {"min_words": 1, "max_words": 3},
        }.items():
            for number, task in enumerate(make_tasks(name, config, 6, seed=3)):
                messages = [{"role": "user", "content": task.question}, {"role": "assistant", "content": task.answer}]
                row = {"id": f"{name}-{number}", "source": name, "messages": messages, "task": task.reference()}
                file.write(json.dumps(row) + "\n")
        chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
        file.write(json.dumps({"id": "chat-0", "source": "chat", "messages": chat, "task": None}) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    library = Path(os.__file__).parent
    texts = [(library / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "textwrap", "random", "csv")]
    save_tokenizer(train_tokenizer(texts, 512).to_str(), target / "tokenizer")
    write_checkpoints(target)
    write_tokens(target)
    write_conversations(target)
