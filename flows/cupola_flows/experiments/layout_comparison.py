"""The job of `cupola verify-layout`: a recipe's model, on the recipe's tokens if they are prepared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cupola_flows.recipe.schema import Recipe
from cupola_flows.recipe.validation import model_of
from cupola_flows.runs.fingerprint import fingerprint
from cupola_flows.stages.base import ARTIFACT
from cupola_flows.stages.pretraining.prepare import PrepareStage
from cupola_flows.stages.pretraining.pretrain import PretrainStage, fit_vocabulary
from cupola_platform.artifacts import Artifact
from cupola_platform.corpus.tokenizer.shards import ShardWriter
from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_platform.workspace import Workspace
from cupola_trainer.config import LayoutConfig, ModelConfig, NextTokenData, TrainJob

FINGERPRINTED = False  # finds tokens by fingerprint

KEYS = ("tp", "pp", "vp", "cp", "ep", "etp", "dp", "sp")
LAYOUT = TypeAdapter(LayoutConfig)
DOCUMENTS = 64
"""Documents of random tokens, if the recipe's are not prepared."""


def parse_layout(option: str, text: str) -> LayoutConfig:
    """Parse a layout such as `tp=2,pp=2`. Raises ConfigError with the option, the value and the rule."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key not in KEYS:
            raise ConfigError(f"{option} {text}: {key!r} is unknown.{did_you_mean(key, KEYS)}")
        if not equals or key in values:
            raise ConfigError(f"{option} {text}: give each key once, as KEY=NUMBER, such as tp=2,pp=2.")
        values[key] = value.strip()
    try:
        return LAYOUT.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else text
        raise ConfigError(f"{option} {text}: {key}={first['input']}: {first['msg'].lower()}.") from None


def trial_job(workspace: Workspace, recipe: Recipe, stage_name: str, folder: Path) -> tuple[TrainJob, str]:
    """A job with a pretraining stage's model and batch, and a description of its tokens.

    Uses the recipe's tokens if `prepare` has been run; else random tokens, written to `folder`.
    """
    name, stage, model = pretraining_model(recipe, stage_name)
    prepared = prepared_tokens(workspace, recipe, name)
    if prepared:
        tokens, words = prepared.path, f"artifact {prepared.id}, the recipe's own tokens"
        model = fit_vocabulary(model, prepared, 1)
    else:
        model = with_vocabulary(model, recipe, name)
        tokens, words = folder / "tokens", "random tokens (the recipe's prepare stage has not been run)"
        draw_tokens(tokens, model.vocab_size, stage.batch.sequence_length, recipe.seed)
    job = TrainJob(
        output=folder,
        seed=recipe.stage_seed(name),
        model=model,
        steps=1,
        optimizer=stage.optimizer,
        batch=stage.batch,
        data=NextTokenData(tokens=tokens),
    )
    return job, words


def pretraining_model(recipe: Recipe, stage_name: str) -> tuple[str, PretrainStage, ModelConfig]:
    """A pretraining stage by name, or the first one, and its model.

    Raises:
        ConfigError: there is no such stage, or its model's shape is not in the recipe.
    """
    name = stage_name or next((n for n in recipe.order() if isinstance(recipe.stages[n], PretrainStage)), "")
    stage = recipe.stages.get(name)
    pretraining = [n for n, s in recipe.stages.items() if isinstance(s, PretrainStage)]
    if not isinstance(stage, PretrainStage):
        raise ConfigError(f"{name or recipe.name!r} is not a pretraining stage.{did_you_mean(name, pretraining)}")
    model = model_of(recipe, name)
    if model is None:
        raise ConfigError(
            f"stages.{name}: its model comes from an artifact. Name a stage whose shape is in the recipe."
        )
    return name, stage, model


def with_vocabulary(model: ModelConfig, recipe: Recipe, name: str) -> ModelConfig:
    """A stage's model with the vocabulary that its tokens will have, if none is set; a multiple of 64."""
    size = model.vocab_size or _vocabulary(recipe, name)
    return replace(model, vocab_size=-(-size // 64) * 64)


def draw_tokens(folder: Path, vocab_size: int, sequence_length: int, seed: int) -> None:
    """Write a `tokens` folder of random documents with Zipf-distributed tokens, as in natural language."""
    draws = np.random.default_rng(seed)
    (folder / "shards").mkdir(parents=True)
    with ShardWriter(folder / "shards" / "train-drawn", "int32") as shard:
        for length in draws.integers(sequence_length // 2, 2 * sequence_length, DOCUMENTS):
            shard.add(np.minimum(draws.zipf(1.2, length), vocab_size - 1).astype(np.int32))
        counts = {"documents": shard.documents, "tokens": shard.tokens, "bytes": 4 * shard.tokens}
    index = {"vocab_size": vocab_size, "sources": {"drawn": {"train": counts}}}
    (folder / "index.json").write_text(json.dumps(index))


def prepared_tokens(workspace: Workspace, recipe: Recipe, name: str) -> Artifact | None:
    """The tokens of a pretraining stage; None if its `prepare` has not been run."""
    return _stored(workspace, recipe, recipe.inputs(name)["tokens"][0])


def _stored(workspace: Workspace, recipe: Recipe, reference: str) -> Artifact | None:
    """The artifact of a reference; None if its stage, or one that it depends on, has not been run."""
    if reference.startswith(ARTIFACT):
        return workspace.resolve(reference.removeprefix(ARTIFACT))
    digests: dict[str, list[str]] = {}
    for field, references in recipe.inputs(reference).items():
        taken = [_stored(workspace, recipe, each) for each in references]
        digests[field] = [artifact.digest for artifact in taken if artifact]
        if len(digests[field]) < len(taken):
            return None
    return workspace.find(fingerprint(recipe, reference, digests))


def _vocabulary(recipe: Recipe, name: str) -> int:
    stage = recipe.stages[recipe.inputs(name)["tokens"][0]]
    assert isinstance(stage, PrepareStage)
    return stage.corpus.tokenizer.vocab_size
