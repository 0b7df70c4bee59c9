"""After pretraining: conversations and fine-tuning on them, preference pairs and alignment by them."""

import json
from dataclasses import replace
from pathlib import Path

from cupola_flows.context import StageContext
from cupola_flows.fingerprint import TRAINING
from cupola_flows.jobs import run_job, train
from cupola_flows.stages import (
    ConversationsStage,
    DistillationStage,
    DpoStage,
    PairsStage,
    PreferencesStage,
    RewardStage,
    SftStage,
)
from cupola_flows.writing import rewards
from cupola_platform.artifacts import Artifact, code_version, fingerprint
from cupola_platform.errors import ConfigError
from cupola_trainer.config import DistillationData, DpoData, ReferenceJob, RewardData, SampleJob, SftData, TeachJob
from cupola_trainer.data.conversations import read_rows
from cupola_trainer.data.instructions import make_conversations
from cupola_trainer.data.preferences import make_preferences, make_prompts, read_preferences
from cupola_trainer.evaluation.execution import shares_passed

EPOCHS = 2.0
"""Of fine-tuning, where a recipe says nothing (Qwen2's)."""


def conversations(ctx: StageContext, stage: ConversationsStage, tokens: Artifact | None) -> Artifact:
    """Make conversations from verifiable tasks, from the corpus's own documents, and from files."""
    if stage.corpus_conversations and tokens is None:
        raise ConfigError(f"stage {ctx.name}: corpus_conversations needs a corpus. Name the stage `tokens`.")
    folder = ctx.empty("conversations")
    report = make_conversations(
        tasks=stage.tasks,
        corpus=tokens.path if tokens and stage.corpus_conversations else None,
        corpus_conversations=stage.corpus_conversations,
        heldout_per_task=stage.heldout_per_task,
        seed=ctx.seed,
        to=folder,
        files=stage.files,
    )
    metrics = {f"{split}_conversations": float(sum(report[split].values())) for split in ("train", "heldout")}
    return ctx.publish(folder, parents=[tokens] if tokens else [], metrics=metrics)


def sft(
    ctx: StageContext, stage: SftStage, parent: Artifact, conversations: Artifact, base: Artifact | None = None
) -> Artifact:
    """Fine-tune a checkpoint on conversations: loss on the assistant's tokens only."""
    epochs = None if stage.steps else stage.epochs or EPOCHS
    data = SftData(conversations=conversations.path, epochs=epochs, pack=stage.pack)
    return train(ctx, stage, data=data, parent=parent, parents=[parent, conversations], base=base)


def preferences(
    ctx: StageContext,
    stage: PreferencesStage,
    parent: Artifact,
    conversations: Artifact,
    reward_model: Artifact | None = None,
) -> Artifact:
    """Ask a checkpoint the training questions several times, score its answers, and pair better with worse ones."""
    prompts = ctx.folder / "prompts.jsonl"
    needs = {"task": "task", "execution": "tests"}.get(stage.score_by)
    make_prompts(conversations.path, needs=needs, count=stage.max_prompts, seed=ctx.seed, to=prompts)
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
        scores=answer_scores(ctx, stage, prompts, job.output / "samples.jsonl", reward_model),
        min_gap=stage.min_gap if stage.score_by == "reward" else None,
        made_by={"model": parent.id, "filter": stage.score_by},
        heldout_fraction=stage.heldout_fraction,
        pairs_per_prompt=stage.pairs_per_prompt,
        seed=ctx.seed,
        to=folder,
    )
    told = {"sampled_accuracy": "accuracy", "mean_score": "mean_score"}
    metrics = {"answers": float(report["answers"])} | {name: report[key] for name, key in told.items() if key in report}
    metrics |= {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
    parents = [parent, conversations, *([reward_model] if reward_model else [])]
    return ctx.publish(folder, parents=parents, metrics=metrics)


def answer_scores(
    ctx: StageContext, stage: PreferencesStage, prompts: Path, samples: Path, reward_model: Artifact | None
) -> list[float] | None:
    """The score of each sampled answer, in order; none where its task scores it."""
    if stage.score_by == "task":
        return None
    asked = {row["id"]: row for row in read_rows(prompts)}
    answered = list(read_rows(samples))
    if reward_model is None:
        return shares_passed([(row["answer"], asked[row["id"]]["tests"]) for row in answered])
    ended = [row for row in answered if row["finished"]]  # the others make no pair
    told = [[*asked[row["id"]]["messages"], {"role": "assistant", "content": row["answer"]}] for row in ended]
    found = iter(rewards(ctx, reward_model, told, stage.layout))
    return [next(found) if row["finished"] else 0.0 for row in answered]


def pairs(ctx: StageContext, stage: PairsStage) -> Artifact:
    """Take preference pairs of others from files."""
    folder = ctx.empty("preferences")
    report = read_preferences(stage.files, heldout_fraction=stage.heldout_fraction, seed=ctx.seed, to=folder)
    metrics = {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
    return ctx.publish(folder, parents=[], metrics=metrics | {"dropped": float(sum(report["dropped"].values()))})


def dpo(
    ctx: StageContext, stage: DpoStage, parent: Artifact, preferences: Artifact, base: Artifact | None = None
) -> Artifact:
    """Align a checkpoint by pairs, against itself frozen."""
    asked = None if base else reference(ctx, stage, parent, preferences)
    data = DpoData(
        preferences=preferences.path,
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        loss_type=stage.loss_type,
        sft_weight=stage.sft_weight,
        reference=asked.path if asked else None,
    )
    parents = [artifact for artifact in (parent, preferences, asked) if artifact]
    return train(ctx, stage, data=data, parent=parent, parents=parents, base=base)


def reference(ctx: StageContext, stage: DpoStage, parent: Artifact, preferences: Artifact) -> Artifact:
    """What the frozen parent says of every answer: computed once, whatever is then tried with it."""
    config = {"sequence_length": stage.batch.sequence_length, "precision": stage.precision}
    mark = fingerprint({"reference": config}, [parent.digest, preferences.digest], code_version(*TRAINING))
    found = ctx.workspace.find(mark)
    if found:
        return found
    job = ReferenceJob(
        output=ctx.folder / "reference",
        seed=ctx.seed,
        initial=parent.path,
        data=DpoData(preferences=preferences.path),
        batch=stage.batch,
        parallel=stage.layout,
        precision=stage.precision,
    )
    result = run_job(ctx, job)
    return ctx.workspace.publish(
        result.folder,
        kind="reference",
        parents=[parent, preferences],
        stage=f"{ctx.name}-reference",
        recipe=ctx.recipe.name,
        fingerprint=mark,
        config=config,
        metrics=result.metrics,
    )


def reward(
    ctx: StageContext, stage: RewardStage, preferences: Artifact, parent: Artifact | None, reward: Artifact | None
) -> Artifact:
    """Train a reward model on pairs: from a language model, or from another reward model."""
    initial = reward or parent
    if initial is None:
        raise ConfigError(f"stage {ctx.name} has nothing to start from: name `parent` or `reward`.")
    data = RewardData(
        preferences=preferences.path, margin=stage.margin, center=stage.center, balance_tags=stage.balance_tags
    )
    return train(ctx, stage, data=data, parent=initial, parents=[initial, preferences])


def distillation(
    ctx: StageContext,
    stage: DistillationStage,
    teacher: Artifact,
    parent: Artifact | None,
    tokens: Artifact | None,
    conversations: Artifact | None,
) -> Artifact:
    """Train a student on what a teacher says of each next token."""
    data = DistillationData(
        teacher=teacher.path,
        tokens=tokens.path if tokens else None,
        conversations=conversations.path if conversations else None,
        divergence=stage.divergence,
        beta=stage.beta,
        temperature=stage.temperature,
        token_loss=stage.token_loss,
        weights=stage.weights,
        pack=stage.pack and stage.layout.cp == 1,
    )
    sources = [artifact for artifact in (parent, tokens, conversations) if artifact]
    if stage.stored_top_k:
        taught = teachings(ctx, stage, teacher, data, [artifact for artifact in (tokens, conversations) if artifact])
        data = replace(data, teacher=None, stored=taught.path)
        sources.append(taught)
    vocabulary = json.loads((teacher.path / "model.json").read_text())["vocab_size"]
    model = replace(stage.model, vocab_size=vocabulary) if stage.model else None
    tokenizer = teacher.path / "tokenizer" if model else None
    return train(ctx, stage, data=data, parent=parent, parents=[teacher, *sources], model=model, tokenizer=tokenizer)


def teachings(
    ctx: StageContext, stage: DistillationStage, teacher: Artifact, data: DistillationData, texts: list[Artifact]
) -> Artifact:
    """What the teacher says of the stage's samples: asked once, whatever students then learn from it."""
    config = {
        "seed": ctx.seed,
        "samples": stage.steps * stage.batch.global_batch_size,
        "heldout": stage.evaluate_batches * stage.batch.global_batch_size,
        "sequence_length": stage.batch.sequence_length,
        "top_k": stage.stored_top_k,
        "temperature": stage.temperature,
        "weights": stage.weights,
        "pack": data.pack,
    }
    mark = fingerprint({"teacher": config}, [teacher.digest, *(text.digest for text in texts)], code_version(*TRAINING))
    found = ctx.workspace.find(mark)
    if found:
        return found
    job = TeachJob(
        output=ctx.folder / "teach",
        seed=ctx.seed,
        initial=teacher.path,
        data=data.text,
        steps=stage.steps,
        batch=stage.batch,
        evaluate_batches=stage.evaluate_batches,
        top_k=stage.stored_top_k or 1,
        temperature=stage.temperature,
        parallel=stage.teacher_layout or stage.layout,
    )
    result = run_job(ctx, job)
    return ctx.workspace.publish(
        result.folder,
        kind="teacher",
        parents=[teacher, *texts],
        stage=f"{ctx.name}-teacher",
        recipe=ctx.recipe.name,
        fingerprint=mark,
        config=config,
        metrics=result.metrics,
    )
