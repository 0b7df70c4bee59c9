"""Writing a checkpoint: training stands still while its state is copied; the rest happens beside the next steps."""

import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cupola_platform import artifacts
from cupola_platform.artifacts import Artifact
from cupola_trainer import runtime
from cupola_trainer.checkpoint import generators, storage
from cupola_trainer.checkpoint.description import MODEL
from cupola_trainer.checkpoint.shards import Shard, moment_shards, weight_shards
from cupola_trainer.config import ModelConfig, ParallelConfig

POLL = 0.05
"""Seconds between looks at whether every rank has written its part."""


class SaveFailedError(OSError):
    """A checkpoint could not be written: the disk is full, for instance. Earlier checkpoints are as they were."""


class Save:
    """A checkpoint being written. Every rank makes one, goes on training, and calls `finish` once all are `written`."""

    def __init__(self, folder: Path, tokenizer: Path | None, model: ModelConfig, training: Mapping[str, Any]) -> None:
        self.folder, self.tokenizer, self.model, self.training = folder, tokenizer, model, training
        self.partial = folder.with_name(f".{folder.name}.partial")
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def start(self, shards: Sequence[Shard], staging: storage.Staging) -> None:
        """Copy this rank's shards, and have a thread write them."""
        failed = runtime.on_first_rank(self._make_folder)
        if failed:
            self._error = OSError(failed)
            return
        content, boxes = staging.copy(shards)
        rng = generators.snapshot()

        def work() -> None:
            try:
                storage.write(self.partial / "state", runtime.rank(), content, boxes, rng)
            except OSError as error:
                self._error = error

        self._thread = threading.Thread(target=work, name=f"save {self.folder.name}")
        self._thread.start()

    def written(self) -> bool:
        """Whether every rank has written its part, or failed to. Every rank calls it."""
        return not runtime.any_rank(self._thread is not None and self._thread.is_alive())

    def finish(self, beat: Callable[[], None] = lambda: None) -> Artifact:
        """Wait for every rank, seal the folder and give it its name. Replaces what lies there. Every rank calls it.

        Args:
            beat: called now and then while it waits.

        Raises:
            SaveFailedError: a rank could not write; nothing is left of this checkpoint.
        """
        while not self.written():
            beat()
            if self._thread:
                self._thread.join(POLL)
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, _words(self._error))
        failure = next((text for text in failures if text), None) or runtime.on_first_rank(self._seal)
        if failure:
            runtime.on_first_rank(lambda: shutil.rmtree(self.partial, ignore_errors=True))
            raise SaveFailedError(f"{self.folder.name} could not be saved: {failure}.")
        return artifacts.read(self.folder)

    def _make_folder(self) -> str | None:
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            (self.partial / "state").mkdir(parents=True)
        except OSError as error:
            return _words(error)
        return None

    def _seal(self) -> str | None:
        try:
            (self.partial / "model.json").write_bytes(MODEL.dump_json(self.model, indent=2))
            (self.partial / "training.json").write_text(json.dumps(self.training, indent=2))
            if self.tokenizer:
                shutil.copytree(self.tokenizer, self.partial / "tokenizer", dirs_exist_ok=True)
            known = {f"state/{name}": entry for name, entry in storage.written(self.partial / "state").items()}
            artifacts.seal(self.partial, kind="checkpoint", config=self.training, known=known)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.partial.rename(self.folder)
        except OSError as error:
            return _words(error)
        return None


class Checkpointer:
    """Saves one model in training again and again: host memory, and who writes what, are kept between saves."""

    def __init__(self, chunks: Sequence[torch.nn.Module], optimizer: Any = None, scheduler: Any = None) -> None:
        self.chunks, self.optimizer, self.scheduler = chunks, optimizer, scheduler
        self.staging = storage.Staging()
        self._places: list[list[tuple[Any, int]]] = []

    def begin(
        self,
        folder: Path,
        *,
        model: ModelConfig,
        parallel: ParallelConfig,
        step: int,
        consumed_samples: int,
        seed: int,
        objective: str,
        tokenizer: Path | None,
        extra: Mapping[str, Any] | None = None,
    ) -> Save:
        """Copy the state of this moment and begin to write it. Every rank calls it.

        Args:
            extra: what else training.json holds; plain JSON.
        """
        training = {
            "step": step,
            "consumed_samples": consumed_samples,
            "seed": seed,
            "objective": objective,
            "parallel": asdict(parallel),
            "optimizer": self.optimizer is not None,
            **(extra or {}),
        }
        if self.optimizer is not None:
            steps = [int(group.get("step", 0)) for group in self.optimizer.param_groups]
            training |= {"optimizer_step": max(steps, default=0), "scheduler": self.scheduler.state_dict()}
        save = Save(folder, tokenizer, model, training)
        save.start(self._shards(), self.staging)
        return save

    def _shards(self) -> list[Shard]:
        shards = weight_shards(self.chunks)
        if self.optimizer is not None:
            shards += moment_shards(self.chunks, self.optimizer)
        if not self._places:
            self._places = [[] for _ in range(dist.get_world_size())]
            mine = [(shard.place, shard.data.nbytes) for shard in shards if shard.main]
            dist.all_gather_object(self._places, mine)
        return storage.owned(shards, self._places, runtime.rank())


def _words(error: OSError | None) -> str | None:
    return (error.strerror or str(error)) if error else None
