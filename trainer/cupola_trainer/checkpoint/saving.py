"""Saving a checkpoint while training continues: weights and moments are copied before the next update changes them."""

import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.utils import unwrap_model

from cupola_platform import artifacts
from cupola_platform.artifacts import Artifact
from cupola_platform.artifacts.elsewhere import absent
from cupola_platform.durable import sync_folder
from cupola_trainer import runtime
from cupola_trainer.checkpoint import unshared
from cupola_trainer.checkpoint.description import MODEL, SCHEDULE, STATE
from cupola_trainer.checkpoint.scales import scale_shards
from cupola_trainer.checkpoint.shards import Shard
from cupola_trainer.checkpoint.share import KeptShare, Share
from cupola_trainer.checkpoint.staging import NotWrittenError, Staging, Transfer, write
from cupola_trainer.config import OPTIMIZER, LayoutConfig, ModelConfig
from cupola_trainer.runtime import folders

POLL = 0.05
"""Seconds between checks whether every rank has written its part."""


class SaveFailedError(OSError):
    """A checkpoint could not be written, on a full disk for instance. Earlier checkpoints are unchanged."""


class Save:
    """A checkpoint being written. Every rank creates one, keeps training, and calls `finish` once it is `ready`."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Path | None,
        model: ModelConfig,
        training: Mapping[str, Any],
        schedule: Mapping[str, Any] | None,
    ) -> None:
        """`schedule` is the content of optimizer.json; None saves weights only."""
        self.folder, self.tokenizer, self.model, self.training = folder, tokenizer, model, training
        self.schedule = schedule
        self.parts = (STATE,) if schedule is None else (STATE, OPTIMIZER)
        self.partial = folder.with_name(f".{folder.name}.partial")
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._written: dict[str, tuple[int, str]] = {}
        """Size and digest of the files of this rank, then of those of all ranks."""
        self._sealing = False
        self._failure: str | None = None

    def start(self, share: Share, staging: Staging, *, passing: set[int]) -> None:
        """Copy and write this rank's share in threads.

        Args:
            passing: addresses of tensors that may change before the next update; copied immediately.
        """
        failed = folders.on_each_folder(self._make_folder)
        if failed:
            self._error = OSError(failed)
            self._copied.set()
            return
        parts = {part: [_kept(shard, passing) for shard in staging.arranged(share[part])] for part in self.parts}
        transfer = Transfer(staging)

        def work() -> None:
            try:
                self._written = write(self.partial, runtime.rank(), parts, transfer, copied=self._copied.set)
            except NotWrittenError as error:
                self._error = error.__cause__
            except Exception as error:  # noqa: BLE001 - after any error, this checkpoint must not be sealed
                self._error = error
            finally:
                self._copied.set()

        self._thread = threading.Thread(target=work, name=f"save {self.folder.name}")
        self._thread.start()

    def wait_until_copied(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until weights and moments are copied and may change.

        Args:
            beat: called periodically while waiting.
        """
        while not self._copied.wait(POLL):
            beat()

    def ready(self) -> bool:
        """Whether every rank has written its part and the first has sealed the folder. Collective."""
        if runtime.any_rank(self._thread is not None and self._thread.is_alive()):
            return False
        if self._sealing:
            return True
        self._sealing = True
        ranks: list[tuple[str | None, dict[str, tuple[int, str]]]] = [(None, {})] * dist.get_world_size()
        dist.all_gather_object(ranks, (_message(self._error), self._written))
        self._failure = next((text for text, _ in ranks if text), None)
        self._written = {path: entry for _, files in ranks for path, entry in files.items()}
        if self._failure is None and runtime.rank() == 0:
            self._thread = threading.Thread(target=self._seal, name=f"seal {self.folder.name}")
            self._thread.start()
        return self._failure is not None

    def finish(self, beat: Callable[[], None] = lambda: None) -> Artifact:
        """Wait until the folder is sealed and renamed, replacing any existing one. Collective.

        Args:
            beat: called periodically while waiting.

        Raises:
            SaveFailedError: a rank could not write; the partial checkpoint is removed.
        """
        while not self.ready():
            beat()
            if self._thread:
                self._thread.join(POLL)
        failure = runtime.on_first_rank(lambda: self._failure)
        if failure:
            folders.on_each_folder(lambda: shutil.rmtree(self.partial, ignore_errors=True))
            raise SaveFailedError(f"{self.folder.name} could not be saved: {failure}.")
        if not folders.is_shared():
            unshared.tell_other_nodes(self.folder, self.partial)
        return artifacts.read(self.folder)

    def _make_folder(self) -> str | None:
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            for part in self.parts:
                (self.partial / part).mkdir(parents=True)
        except OSError as error:
            return _message(error)
        return None

    def _seal(self) -> None:
        try:
            (self.partial / "model.json").write_bytes(MODEL.dump_json(self.model, indent=2))
            (self.partial / "training.json").write_text(json.dumps(self.training, indent=2))
            if self.tokenizer:
                shutil.copytree(self.tokenizer, self.partial / "tokenizer", dirs_exist_ok=True)
            if self.schedule is not None:
                (self.partial / SCHEDULE).write_text(json.dumps(self.schedule, indent=2))
            elsewhere = {path: self._written[path] for path in absent(self.partial, list(self._written))}
            if elsewhere and folders.is_shared():
                raise OSError(
                    f"{min(elsewhere)}, which another rank wrote, is not there. Do all nodes share the folder?"
                )
            sealed = artifacts.seal(
                self.partial, kind="checkpoint", config=self.training, known=self._written, elsewhere=elsewhere
            )
            if not folders.is_shared():
                unshared.mark(self.folder, sealed)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.partial.rename(self.folder)
            sync_folder(self.folder.parent)  # so that older checkpoints can be removed safely
        except Exception as error:  # noqa: BLE001 - reported to every rank
            self._failure = _message(error)


class Checkpointer:
    """Saves one model repeatedly, keeping host memory and the list of shards between saves."""

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        optimizer: Any = None,
        scheduler: Any = None,
        *,
        staging: Staging | None = None,
    ) -> None:
        """`staging` is for saves that training continues beside."""
        self.chunks, self.optimizer, self.scheduler = chunks, optimizer, scheduler
        self.staging = staging or Staging()
        self.share = KeptShare(chunks, optimizer)

    def begin(
        self,
        folder: Path,
        *,
        model: ModelConfig,
        layout: LayoutConfig,
        step: int,
        consumed_samples: int,
        seed: int,
        objective: str,
        tokenizer: Path | None,
        extra: Mapping[str, Any] | None = None,
    ) -> Save:
        """Start saving the current state. Collective; call `wait_until_copied` before the next update.

        Args:
            extra: further entries of training.json; plain JSON.
        """
        training = {
            "step": step,
            "consumed_samples": consumed_samples,
            "seed": seed,
            "objective": objective,
            "layout": asdict(layout),
            **(extra or {}),
        }
        save = Save(folder, tokenizer, model, training, self._schedule())
        for chunk in self.chunks:
            gather(chunk)
        passing = {buffer.data_ptr() for chunk in unwrap_model(list(self.chunks)) for buffer in chunk.buffers()}
        passing |= {shard.data.data_ptr() for shard in scale_shards(self.chunks)}
        save.start(self.share.now(), self.staging, passing=passing)
        return save

    def _schedule(self) -> dict[str, Any] | None:
        if self.optimizer is None:
            return None
        steps = [int(group.get("step", 0)) for group in self.optimizer.param_groups]
        return {"step": max(steps, default=0), "scheduler": self.scheduler.state_dict()}


def gather(chunk: torch.nn.Module) -> None:
    """Finish the parameter all-gather of a data-parallel chunk if it overlaps with the next forward pass."""
    ddp = getattr(chunk, "ddp_config", None)
    if ddp and ddp.overlap_param_gather:
        chunk.disable_forward_pre_hook(param_sync=True)
        chunk.enable_forward_pre_hook()


def _kept(shard: Shard, passing: set[int]) -> Shard:
    return replace(shard, data=shard.data.clone()) if shard.data.data_ptr() in passing else shard


def _message(error: BaseException | None) -> str | None:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__) if error else None
