"""One text, continued by a checkpoint in one process."""

from pathlib import Path

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint.description import read_training
from cupola_trainer.config import ParallelConfig
from cupola_trainer.rollout.generation import generate
from cupola_trainer.rollout.loading import load
from cupola_trainer.rollout.sampling import Sampling


def continue_text(checkpoint: Path, prompt: str, sampling: Sampling, seed: int = 0) -> str:
    """What the model says after `prompt`, without control tokens.

    An imported model ends where its own configuration says and may draw from every row of its embedding, so that greedy
    text is transformers' own; a model of ours ends at the tokenizer's control tokens and draws what the tokenizer has.

    Raises:
        ConfigError: the prompt is empty or too long.
        CorruptArtifactError: the checkpoint does not verify; names the file.
    """
    if not prompt:
        raise ConfigError("The prompt is empty. Give the model at least a word to continue.")
    runtime.start(ParallelConfig(), seed)
    try:
        loaded = load(checkpoint, ParallelConfig())
        tokens = loaded.tokenizer.encode(prompt)  # with the beginning of a text where the family has one
        imported = read_training(checkpoint).get("control_tokens")
        stops = _as_list(imported["eos"]) if imported else None
        [completion] = generate(
            loaded.chunks, loaded.tokenizer, [tokens], sampling,
            stops=stops, vocabulary=loaded.model.vocab_size if imported else None, seed=seed,
        )  # fmt: skip
        return str(loaded.tokenizer.decode(completion.tokens, skip_special_tokens=True))
    finally:
        runtime.stop()


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
