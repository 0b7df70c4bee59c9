"""The model card of an exported folder: the model's shape and lineage."""

import json
from typing import Any

from cupola_platform.artifacts import Artifact
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.sizes import active_parameters, parameter_count
from cupola_trainer.conversion import families

TEMPLATE = """---
library_name: transformers
pipeline_tag: {task}
tags: [cupola]
---
# {title}

{kind} with {parameters:,} parameters{active}. Exported by Cupola from checkpoint `{id}`.

```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("FOLDER"){tokenizer}
```

## Shape

{shape}

## Lineage

{lineage}

Full lineage, down to the source files: `cupola lineage {id}`.
{metrics}"""


def model_card(artifact: Artifact, model: ModelConfig, training: dict[str, Any], has_tokenizer: bool) -> str:
    """The model card, in Markdown.

    Args:
        artifact: the checkpoint.
        training: its training.json.
    """
    manifest = artifact.manifest
    lineage = {
        "Checkpoint": f"`{artifact.digest}`",
        "Made from": ", ".join(f"`{parent}`" for parent in manifest.parents) or "nothing (new or imported weights)",
        "Recipe": manifest.recipe,
        "Stage": manifest.stage,
        "Created": manifest.created,
        "Code": f"`{manifest.code_version}`",
        "Fingerprint": f"`{manifest.fingerprint}`" if manifest.fingerprint else "",
    }
    lineage |= {key.replace("_", " ").capitalize(): _inline(value) for key, value in training.items()}
    metrics = {name: f"{value:.6g}" for name, value in manifest.metrics.items()}
    return TEMPLATE.format(
        task="text-classification" if model.is_scalar else "text-generation",
        loader="AutoModelForSequenceClassification" if model.is_scalar else "AutoModelForCausalLM",
        title=manifest.stage or "Model",
        kind=f"A {'mixture of experts' if model.moe else 'dense decoder'} ({families.of(model).title})",
        tokenizer='\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")' if has_tokenizer else "",
        parameters=parameter_count(model),
        active=f", {active_parameters(model):,} active per token" if model.moe else "",
        id=artifact.id,
        shape=_table(_shape(model)),
        lineage=_table({key: value for key, value in lineage.items() if value}),
        metrics=f"\n## Metrics\n\n{_table(metrics)}\n" if metrics else "",
    )


def _shape(model: ModelConfig) -> dict[str, str]:
    shape = {
        "Layers": model.num_layers,
        "Hidden size": model.hidden_size,
        "Query heads / key-value heads": f"{model.num_attention_heads} / {model.num_query_groups}",
        "Vocabulary rows": model.vocab_size,
        "Longest sequence": model.max_position_embeddings,
        "RoPE": f"base {model.rope_theta:g}" + (f", {model.rope_scaling.type}" if model.rope_scaling else ""),
        **({"Head": "scalar"} if model.is_scalar else {"Tied embeddings": model.tie_embeddings}),
    }
    if model.moe:
        shape["Experts (active)"] = f"{model.moe.num_experts} ({model.moe.top_k})"
        shape["Expert intermediate size"] = model.moe.expert_ffn_hidden_size
        shape["Shared expert intermediate size"] = model.moe.shared_expert_ffn_hidden_size or "none"
    else:
        shape["Intermediate size"] = model.ffn_hidden_size
    return {key: str(value) for key, value in shape.items()}


def _inline(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else f"`{json.dumps(value, sort_keys=True)}`"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
