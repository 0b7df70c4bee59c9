"""Run a MergeAdapterJob: merge LoRA adapters into their base and write a full checkpoint."""

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.config import MergeAdapterJob
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.checkpoint_writer import write
from cupola_trainer.data.tokenizer_folders import tokenizer_of
from cupola_trainer.lora.attaching import read_adapter
from cupola_trainer.lora.folding import Folded
from cupola_trainer.reporting.progress import Report


def run(job: MergeAdapterJob) -> None:
    """Write the full checkpoint of a base and adapters into `job.output`.

    Raises:
        ConfigError: `job.adapter` holds no adapters, or they were trained on another base.
        CorruptArtifactError: the base or the adapters do not verify.
    """
    lora, digest = read_adapter(job.adapter)
    parent = artifacts.read(job.parent).digest
    if parent != digest:
        raise ConfigError(
            f"{job.adapter} was trained on {digest[:12]}, but {job.parent} is {parent[:12]}. Give the base it was "
            "trained on."
        )
    model = checkpoint.read_model(job.adapter)  # the base's, with any changes to its positions
    validate_layout(model, job.layout)
    runtime.start(job.layout, job.seed)
    parameters = parameter_count(model)
    with Report(job.output, kind="merge_adapter", steps=1, parameters=parameters) as report:
        base = StoredTensors(job.parent)
        write(
            job.output / "checkpoint",
            model,
            Folded(base, StoredTensors(job.adapter), lora),
            layout=job.layout,
            dtype=base.outline("embedding.word_embeddings.weight").dtype,
            seed=job.seed,
            objective="merge_adapter",
            tokenizer=tokenizer_of([job.adapter, job.parent]),
        )
        report.step(1)
        report.complete("checkpoint", {"parameters": parameters})
