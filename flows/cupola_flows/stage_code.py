"""The modules that decide what each stage gives: its fingerprint holds their sources.

Left out is what cannot change a result: logs, progress, watchdogs, uploads, the checks of a configuration, whose values the
fingerprint has anyway. tests/flows/test_stage_code.py holds these lists to the import graph, and says what it takes as left out.
"""

from collections.abc import Mapping, Sequence

from cupola_flows.stages import AnyStage, PrepareStage

ROWS = (
    "cupola_platform.json_lines",
    "cupola_platform.rows",
    "cupola_platform.conversation",
)
MODEL = (
    "cupola_platform.json_lines",
    "cupola_trainer.architecture",
    "cupola_trainer.positions",
    "cupola_trainer.layout",
    "cupola_trainer.sizes",
    "cupola_trainer.checkpoint",
    "cupola_trainer.runtime",
    "cupola_trainer.models",
    "cupola_trainer.kernels",
    "cupola_trainer.results",
)
FORWARD = (
    *MODEL,
    *ROWS,
    "cupola_trainer.forward",
    "cupola_trainer.data",
    "cupola_trainer.config.lengths",
    "cupola_trainer.objectives",
)
REFERENCE = (*FORWARD, "cupola_trainer.jobs.reference")
TEACHER = (*FORWARD, "cupola_trainer.jobs.teach", "cupola_trainer.objective_table", "cupola_trainer.rollout.loading")
TRAINING = (
    *FORWARD,
    "cupola_trainer.loop",
    "cupola_trainer.objective_table",
    "cupola_trainer.run",
    "cupola_trainer.resume",
    "cupola_trainer.faults",
    "cupola_trainer.long_context",
    "cupola_trainer.optim",
    "cupola_trainer.lora.attaching",
    "cupola_trainer.lora.layers",
    "cupola_trainer.upcycling.experts",
    "cupola_flows.training",
)
CHAT = (*ROWS, "cupola_trainer.data.chat", "cupola_trainer.data.dates", "cupola_trainer.data.tokenizer_folders")
ROLLOUT = (
    *MODEL,
    *CHAT,
    "cupola_trainer.rollout",
    "cupola_trainer.conversion.families",
    "cupola_trainer.conversion.live",
    "cupola_trainer.conversion.mapping",
)
VERIFIERS = (
    "cupola_trainer.evaluation.execution",
    "cupola_trainer.evaluation.confined",
    "cupola_trainer.evaluation.sandbox",
    "cupola_trainer.evaluation.workers",
    "cupola_trainer.evaluation.tasks",
)
QUESTIONS = (
    *ROWS,
    "cupola_trainer.data.instructions",
    "cupola_trainer.data.conversations",
    "cupola_trainer.data.documents",
    "cupola_trainer.data.files",
    "cupola_trainer.data.shapes",
    "cupola_trainer.data.trees",
    *CHAT,
    "cupola_trainer.evaluation.tasks",
)
REINFORCEMENT = (
    *TRAINING,
    *ROLLOUT,
    *VERIFIERS,
    "cupola_trainer.reinforcement",
    "cupola_flows.reinforce",
)
WRITING = (
    *ROWS,
    *ROLLOUT,
    *FORWARD,
    *VERIFIERS,
    "cupola_trainer.jobs.score",
    "cupola_trainer.jobs.sample",
    "cupola_trainer.reinforcement",
    "cupola_platform.endpoint",
    "cupola_flows.writing",
)
CONVERSION = ("cupola_trainer.conversion.stored", "cupola_trainer.conversion.writing")
MERGING = (
    *MODEL,
    *CONVERSION,
    "cupola_trainer.conversion.mapping",
    "cupola_trainer.merging",
    "cupola_trainer.jobs.merge",
    "cupola_trainer.optim.selection",
    "cupola_trainer.upcycling.experts",
    "cupola_trainer.data.tokenizer_folders",
)
EVALUATION = (
    *ROLLOUT,
    "cupola_trainer.config.lengths",
    "cupola_trainer.long_context",
    "cupola_trainer.evaluation",
    "cupola_trainer.jobs.evaluate",
    "cupola_platform.page",
    "cupola_flows.evaluate",
)
MIXTURE = ("cupola_platform.corpus.mixture", "cupola_flows.sampling")
TRIALS = (
    *TRAINING,
    *EVALUATION,
    *MIXTURE,
    "cupola_platform.fitting",
    "cupola_platform.corpus.shards",
    "cupola_flows.trials",
    "cupola_flows.laws",
    "cupola_flows.mixing",
    "cupola_flows.pretrain",
)
POSTTRAINING = (*TRAINING, "cupola_flows.posttrain")

ADAPTER = (
    *CONVERSION,
    "cupola_trainer.lora",
    "cupola_trainer.jobs.merge_adapter",
    "cupola_trainer.conversion.families",
    "cupola_trainer.conversion.mapping",
    "cupola_trainer.conversion.safetensors_file",
)
"""What a stage with `lora` runs besides: its adapters are exported and folded into the weights."""
JUDGE = (
    *MODEL,
    "cupola_trainer.evaluation.surprise",
    "cupola_trainer.evaluation.likelihood",
    "cupola_trainer.rollout.loading",
    "cupola_trainer.data.tokenizer_folders",
)
"""What a preparation runs besides whose documents a checkpoint judges."""

OF_KIND: Mapping[str, Sequence[str]] = {
    "prepare": ("cupola_platform.corpus", *QUESTIONS, "cupola_flows.prepare"),
    "pretrain": (*TRAINING, "cupola_flows.pretrain", *MIXTURE),
    "upcycle": (*MODEL, *CONVERSION, "cupola_trainer.conversion.filling", "cupola_trainer.mixture", "cupola_trainer.upcycling", "cupola_trainer.jobs.upcycle", "cupola_flows.upcycle"),
    "long_context": (*TRAINING, "cupola_flows.long_context", *MIXTURE),
    "conversations": (*ROWS, "cupola_trainer.data", *VERIFIERS, "cupola_flows.conversations"),
    "synthesize": (*WRITING, "cupola_flows.synthesis", "cupola_flows.wordings"),
    "sft": POSTTRAINING,
    "preferences": (*WRITING, "cupola_flows.preferences"),
    "pairs": (*WRITING, "cupola_flows.preferences"),
    "dpo": (*POSTTRAINING, *REFERENCE),
    "reward": POSTTRAINING,
    "distillation": (*TRAINING, *TEACHER, "cupola_flows.distillation"),
    "merge": (*MERGING, "cupola_trainer.config.making", "cupola_flows.making"),
    "prune": (*MODEL, *CONVERSION, "cupola_trainer.pruning", "cupola_trainer.jobs.prune", "cupola_trainer.evaluation.likelihood", "cupola_trainer.config.making", "cupola_flows.making"),
    "grpo": REINFORCEMENT,
    "ppo": REINFORCEMENT,
    "online_dpo": REINFORCEMENT,
    "warp": (*REINFORCEMENT, *MERGING, "cupola_trainer.jobs.front", "cupola_flows.warp", "cupola_flows.warp_page", "cupola_platform.page"),
    "evaluate": EVALUATION,
    "promote": (*EVALUATION, "cupola_flows.promote"),
}  # fmt: skip


def modules_of(stage: AnyStage) -> list[str]:
    """The modules of a stage, sorted, each once."""
    modules = {*OF_KIND[stage.kind]}
    if getattr(stage, "lora", None):
        modules |= {*ADAPTER}
    if isinstance(stage, PrepareStage) and stage.judge:
        modules |= {*JUDGE}
    return sorted(modules)
