"""The stages of a recipe, typed: what each one takes, what it gives, and everything that a person may set in it.

A field named in `takes` holds the name of another stage, or `artifact:ID` for what the registry already has. Left out,
it means the nearest earlier stage that gives what is needed.

base.py  pretraining.py  long_context.py  posttraining.py  reinforcing.py  making.py  synthesis.py  deciding.py: a class a stage; here, how a
recipe tells them apart.
"""

from typing import Annotated

from pydantic import Field

from cupola_flows.stages.base import Stage, TrainStage
from cupola_flows.stages.deciding import EvaluateStage, PromoteStage
from cupola_flows.stages.long_context import LongContextStage
from cupola_flows.stages.making import MergeStage, PruneStage
from cupola_flows.stages.posttraining import (
    ConversationsStage,
    DistillationStage,
    DpoStage,
    PairsStage,
    PreferencesStage,
    RewardStage,
    SftStage,
)
from cupola_flows.stages.pretraining import PrepareStage, PretrainStage, UpcycleStage
from cupola_flows.stages.reinforcing import GrpoStage, OnlineDpoStage, PpoStage, WarpStage
from cupola_flows.stages.synthesis import SynthesizeStage

__all__ = [
    "KINDS",
    "NEVER_GUESSED",
    "OPTIONAL",
    "AnyStage",
    "ConversationsStage",
    "DistillationStage",
    "DpoStage",
    "EvaluateStage",
    "GrpoStage",
    "LongContextStage",
    "MergeStage",
    "OnlineDpoStage",
    "PairsStage",
    "PpoStage",
    "PreferencesStage",
    "PrepareStage",
    "PretrainStage",
    "PromoteStage",
    "PruneStage",
    "RewardStage",
    "SftStage",
    "Stage",
    "SynthesizeStage",
    "TrainStage",
    "UpcycleStage",
    "WarpStage",
]


AnyStage = Annotated[
    PrepareStage
    | PretrainStage
    | UpcycleStage
    | LongContextStage
    | ConversationsStage
    | SynthesizeStage
    | SftStage
    | PreferencesStage
    | PairsStage
    | DpoStage
    | RewardStage
    | DistillationStage
    | MergeStage
    | PruneStage
    | GrpoStage
    | PpoStage
    | OnlineDpoStage
    | WarpStage
    | EvaluateStage
    | PromoteStage,
    Field(discriminator="kind"),
]

KINDS: tuple[str, ...] = (
    "prepare",
    "pretrain",
    "upcycle",
    "long_context",
    "conversations",
    "synthesize",
    "sft",
    "preferences",
    "pairs",
    "dpo",
    "reward",
    "distillation",
    "merge",
    "prune",
    "grpo",
    "ppo",
    "online_dpo",
    "warp",
    "evaluate",
    "promote",
)
NEVER_GUESSED: frozenset[tuple[str, str]] = frozenset(
    {
        ("prepare", "judge"),
        ("pretrain", "parent"),
        ("merge", "base"),
        ("sft", "base"),
        ("sft", "pretraining"),
        ("dpo", "base"),
        ("reward", "reward"),
        ("distillation", "parent"),
        ("distillation", "tokens"),
        ("distillation", "conversations"),
        *((kind, "reward_model") for kind in ("grpo", "ppo", "online_dpo", "warp")),
        *(("synthesize", field) for field in ("conversations", "tokens", "writer", "reward_model")),
        ("preferences", "reward_model"),
        ("ppo", "value_model"),
        ("ppo", "pretraining"),
    }
)
"""Inputs that are absent when a recipe does not name them."""
OPTIONAL: frozenset[tuple[str, str]] = NEVER_GUESSED | {
    ("conversations", "tokens"),
    ("evaluate", "conversations"),
    ("promote", "baseline"),
    ("prune", "tokens"),
    ("reward", "parent"),
}
"""Inputs that a stage can do without."""
