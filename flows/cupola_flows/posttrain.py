"""After pretraining: conversations and fine-tuning on them, preference pairs and alignment by them."""

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job, train
from cupola_flows.stages import ConversationsStage, DpoStage, PreferencesStage, SftStage
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import DpoData, SampleJob, SftData
from cupola_trainer.data.instructions import make_conversations
from cupola_trainer.data.preferences import make_preferences, make_prompts


def conversations(ctx: StageContext, stage: ConversationsStage, tokens: Artifact) -> Artifact:
    """Make conversations from verifiable tasks and from the corpus's own documents."""
    folder = ctx.empty("conversations")
    report = make_conversations(
        tasks=stage.tasks,
        corpus=tokens.path if stage.corpus_conversations else None,
        corpus_conversations=stage.corpus_conversations,
        heldout_per_task=stage.heldout_per_task,
        seed=ctx.seed,
        to=folder,
    )
    metrics = {f"{split}_conversations": float(sum(report[split].values())) for split in ("train", "heldout")}
    return ctx.publish(folder, parents=[tokens], metrics=metrics)


def sft(
    ctx: StageContext, stage: SftStage, parent: Artifact, conversations: Artifact, base: Artifact | None = None
) -> Artifact:
    """Fine-tune a checkpoint on conversations: loss on the assistant's tokens only."""
    data = SftData(conversations=conversations.path, pack=stage.pack)
    return train(ctx, stage, data=data, parent=parent, parents=[parent, conversations], base=base)


def preferences(ctx: StageContext, stage: PreferencesStage, parent: Artifact, conversations: Artifact) -> Artifact:
    """Ask a checkpoint the training tasks several times, score its answers, and pair better with worse ones."""
    prompts = ctx.folder / "prompts.jsonl"
    make_prompts(conversations.path, count=stage.max_prompts, seed=ctx.seed, to=prompts)
    job = SampleJob(
        output=ctx.folder / "job",
        seed=ctx.seed,
        initial=parent.path,
        prompts=prompts,
        num_samples=stage.num_samples,
        temperature=stage.temperature,
        top_p=stage.top_p,
        top_k=stage.top_k,
        max_new_tokens=stage.max_new_tokens,
        batch_size=stage.batch_size,
        parallel=stage.layout,
    )
    run_job(ctx, job)
    folder = ctx.empty("preferences")
    report = make_preferences(
        prompts,
        job.output / "samples.jsonl",
        heldout_fraction=stage.heldout_fraction,
        pairs_per_prompt=stage.pairs_per_prompt,
        seed=ctx.seed,
        to=folder,
    )
    metrics = {"sampled_accuracy": report["accuracy"], "answers": float(report["answers"])}
    metrics |= {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
    return ctx.publish(folder, parents=[parent, conversations], metrics=metrics)


def dpo(
    ctx: StageContext, stage: DpoStage, parent: Artifact, preferences: Artifact, base: Artifact | None = None
) -> Artifact:
    """Align a checkpoint by pairs, against itself frozen."""
    data = DpoData(
        preferences=preferences.path,
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        loss_type=stage.loss_type,
        sft_weight=stage.sft_weight,
    )
    return train(ctx, stage, data=data, parent=parent, parents=[parent, preferences], base=base)
