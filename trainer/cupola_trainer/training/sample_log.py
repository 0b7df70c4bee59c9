"""Log which samples each data-parallel rank read in each step: proof that an interrupted job repeats and skips none."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron.core import parallel_state

from cupola_trainer import runtime
from cupola_trainer.reporting.metrics import MetricsWriter, trim

FINGERPRINTED = False  # only reports progress

FOLDER = "samples"


class SampleLog:
    """Writes `samples/dp_*.jsonl`, one line per step: `{"event": "samples", "step", "ranges": [[first, end], ...]}`.

    Over all files, a step's ranges make up the global batch. On resume, lines past the step are dropped from all files,
    even if the number of ranks changed: each rank drops them from its own file, the first one from those of no rank.
    """

    def __init__(self, output: Path, *, dry: bool) -> None:
        self.folder = output / FOLDER
        same = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_context_parallel_rank(),
        )
        path = self.folder / f"dp_{parallel_state.get_data_parallel_rank():05d}.jsonl"
        self._writer = MetricsWriter(None if dry or any(same) else path)

    def open(self, resumed_step: int) -> None:
        """Open the log at the start, on resume or after a rollback. Called on every rank."""
        runtime.on_first_rank(lambda: self._trim(resumed_step))
        self._writer.open(resumed_step)

    def write(self, step: int, samples: Sequence[Sequence[int]]) -> None:
        """`samples` are the step's numbers on this rank, by micro-batch."""
        self._writer.write("samples", step=step, ranges=[part for micro in samples for part in _ranges(micro)])

    def close(self) -> None:
        self._writer.close()

    def _trim(self, resumed_step: int) -> None:
        for path in self.folder.glob("dp_*.jsonl"):
            if int(path.stem.removeprefix("dp_")) >= parallel_state.get_data_parallel_world_size():
                trim(path, resumed_step)


def _ranges(numbers: Sequence[int]) -> Iterator[list[int]]:
    """[first, end] of each run of consecutive numbers."""
    starts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1] + 1]
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        yield [numbers[start], numbers[end - 1] + 1]
