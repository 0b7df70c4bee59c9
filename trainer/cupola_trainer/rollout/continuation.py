"""One text, continued by a checkpoint in one process."""

from pathlib import Path

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import ParallelConfig
from cupola_trainer.rollout.generation import generate
from cupola_trainer.rollout.loading import load
from cupola_trainer.rollout.sampling import Sampling


def continue_text(checkpoint: Path, prompt: str, sampling: Sampling, seed: int = 0) -> str:
    """What the model says after `prompt`, without control tokens.

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
        [completion] = generate(loaded.chunks, loaded.tokenizer, [tokens], sampling, seed=seed)
        return str(loaded.tokenizer.decode(completion.tokens, skip_special_tokens=True))
    finally:
        runtime.stop()
