"""The jobs that make a checkpoint out of others, without training: merge, fold adapters in, prune, upcycle."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_platform.strict import STRICT, Strict
from cupola_trainer.config.layout import LayoutSettings
from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig

MergeMethod = Literal["average", "slerp", "ties", "dare"]


class JobBase(LayoutSettings):
    """What every job is told."""

    output: Path
    """Folder of this job: metrics.jsonl, result.json, error.json, and what it makes. Running again in it goes on."""
    seed: int = 0


class MergeSettings(Strict):
    """How checkpoints of one architecture become one."""

    method: MergeMethod = "average"
    weights: tuple[float, ...] | None = None
    """One for each checkpoint; only their proportions matter. None for equal ones."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of each task vector that ties keeps by magnitude, and dare at random; none for 0.2, TIES's own."""
    scale: float = Field(default=1.0, gt=0)
    """What the merged task vector of ties and dare is multiplied with."""

    def check_count(self, count: int, *, has_base: bool) -> None:
        """Refuse a merge that cannot be.

        Args:
            count: checkpoints to merge.

        Raises:
            ValueError: the value, the rule, the next move.
        """
        if count < 2:
            raise ValueError(f"{count} checkpoint to merge: at least two are needed")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"{len(self.weights)} weights for {count} checkpoints: give one for each")
        if self.weights is not None and (any(weight < 0 for weight in self.weights) or sum(self.weights) <= 0):
            raise ValueError(f"weights={list(self.weights)}: none may be below 0, and not all may be 0")
        if self.method in ("ties", "dare") and not has_base:
            raise ValueError(
                f"method={self.method} merges what was learned since a base: give `base`, the common parent"
            )
        if self.method == "average" and has_base:
            raise ValueError("method=average with a base: the average is the same with and without one. Leave it out")
        if self.method in ("average", "slerp") and self.density is not None:
            raise ValueError(
                f"density={self.density} with method={self.method}: only ties and dare are sparse. Leave it out"
            )


class MergeJob(MergeSettings, JobBase):
    """Merge checkpoints of one architecture into one."""

    kind: Literal["merge"] = "merge"
    checkpoints: tuple[Path, ...]
    """Checkpoint folders; the first one gives the tokenizer and the precision."""
    base: Path | None = None
    """The checkpoint that all were trained from: what the task vectors of ties, dare and, if given, slerp start at."""

    @model_validator(mode="after")
    def _can_be(self) -> "MergeJob":
        self.check_count(len(self.checkpoints), has_base=self.base is not None)
        return self


class MergeAdapterJob(JobBase):
    """Fold low-rank adapters into the weights of the model that they were trained on."""

    kind: Literal["merge_adapter"] = "merge_adapter"
    parent: Path
    """Checkpoint folder of that model."""
    adapter: Path
    """Checkpoint folder of the adapters."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PruneTarget:
    """What a pruned model is to be; whatever is left out stays as it is."""

    num_layers: int | None = Field(default=None, ge=1)
    """Layers to keep: those that change their input most."""
    drop_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers to drop by number, from 0, instead."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Channels of the residual stream, the same ones in every layer."""
    num_attention_heads: int | None = Field(default=None, ge=1)
    """Query heads; a group keeps as many as every other one."""
    num_query_groups: int | None = Field(default=None, ge=1)
    """Key and value heads, each with its query heads."""
    ffn_hidden_size: int | None = Field(default=None, ge=1)
    """Intermediate units of a dense FFN."""
    num_experts: int | None = Field(default=None, ge=1)
    """Routed experts."""
    expert_ffn_hidden_size: int | None = Field(default=None, ge=1)
    """Intermediate units of one routed expert."""
    shared_expert_ffn_hidden_size: int | None = Field(default=None, ge=1)
    """Intermediate units of the shared expert."""

    @property
    def by_importance(self) -> bool:
        """Whether held-out tokens are needed to choose: for all but layers that are named."""
        return any(
            getattr(self, field.name) is not None for field in dataclasses.fields(self) if field.name != "drop_layers"
        )

    def check(self, has_tokens: bool) -> None:
        """Refuse a target that says nothing, or too much, or that nothing can be measured for.

        Raises:
            ValueError: the rule and the next move.
        """
        if not self.by_importance and not self.drop_layers:
            raise ValueError("there is nothing to prune: give a smaller size, such as num_layers")
        if self.num_layers and self.drop_layers:
            raise ValueError("num_layers and drop_layers: the number chooses by importance. Give one of them")
        if self.by_importance and not has_tokens:
            raise ValueError("what matters is measured on held-out text: give `tokens`")

    def shape(self, model: ModelConfig, layers: tuple[int, ...] | None = None) -> ModelConfig:
        """The pruned model's configuration. Width of a head and number of a token's experts stay.

        Args:
            layers: those kept, where they are known: windows of attention go with them.

        Raises:
            ConfigError: a size above the model's, or one that does not go with the others.
        """
        sizes = {"hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "num_layers"}
        changed: dict[str, Any] = {name: self._size(name, getattr(model, name)) for name in sizes}
        if self.drop_layers:
            if (last := max(self.drop_layers)) >= model.num_layers:
                raise ConfigError(f"drop_layers: {last}, but the model's layers are 0 to {model.num_layers - 1}.")
            changed["num_layers"] = model.num_layers - len(set(self.drop_layers))
            if not changed["num_layers"]:
                raise ConfigError(f"drop_layers names all {model.num_layers} layers of the model. Leave one in.")
        if layers is not None and model.attention_windows:
            changed["attention_windows"] = tuple(model.window(layer) for layer in layers)
        elif changed["num_layers"] < len(model.attention_windows):
            changed["attention_windows"] = model.attention_windows[: changed["num_layers"]]
        heads, groups = changed["num_attention_heads"], changed["num_query_groups"]
        if heads * model.num_query_groups > model.num_attention_heads * groups:
            raise ConfigError(
                f"num_attention_heads={heads} with num_query_groups={groups}: a group of the model has "
                f"{model.num_attention_heads // model.num_query_groups} query heads. "
                f"Try num_attention_heads={groups * model.num_attention_heads // model.num_query_groups}."
            )
        own = model.head_size * heads != changed["hidden_size"]
        changed["head_dim"] = model.head_size if own else None
        experts = {"num_experts", "expert_ffn_hidden_size", "shared_expert_ffn_hidden_size"}
        if model.moe:
            expert_sizes: dict[str, Any] = {name: self._size(name, getattr(model.moe, name)) for name in experts}
            if expert_sizes["num_experts"] < model.moe.top_k:
                raise ConfigError(
                    f"num_experts={expert_sizes['num_experts']}, but each token visits {model.moe.top_k}. "
                    f"Keep {model.moe.top_k} or more."
                )
            changed["moe"] = dataclasses.replace(model.moe, **expert_sizes)
        elif given := sorted(name for name in experts if getattr(self, name)):
            raise ConfigError(f"{given[0]}={getattr(self, given[0])}, but the model is dense. Leave it out.")
        if model.moe and self.ffn_hidden_size:
            raise ConfigError(
                f"ffn_hidden_size={self.ffn_hidden_size}, but the model has experts. Give expert_ffn_hidden_size."
            )
        try:
            return dataclasses.replace(model, **changed)
        except ValidationError as error:
            raise ConfigError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None

    def _size(self, name: str, now: int | None) -> int | None:
        wanted: int | None = getattr(self, name)
        if wanted is None:
            return now
        if now is None or wanted > now:
            raise ConfigError(f"{name}={wanted}, but the model has {now or 'none'}: pruning makes it smaller only.")
        return wanted


class PruneSettings(Strict):
    """What a smaller model is to be, and on how much text it is seen what matters."""

    to: PruneTarget
    """What the smaller model is to be."""
    max_tokens: int = Field(default=65_536, ge=1)
    """Held-out tokens to look at."""
    sequence_length: int = Field(default=512, ge=8)
    """Most tokens of one sequence of them; no more than the model can take."""


class PruneJob(PruneSettings, JobBase):
    """Make a smaller model of a larger one: whole layers, channels, heads, units and experts left out."""

    kind: Literal["prune"] = "prune"
    parent: Path
    """Checkpoint folder."""
    tokens: Path | None = None
    """A `tokens` artifact's folder: its held-out shards show what matters."""

    @model_validator(mode="after")
    def _can_be(self) -> "PruneJob":
        self.to.check(self.tokens is not None)
        return self


class UpcycleSettings(Strict):
    """How the experts are made of the dense FFNs."""

    moe: MoEConfig
    reinit_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of each expert's parameters drawn anew."""
    reinit: Literal["element", "unit", "none"] = "element"
    """What is drawn anew: single weights, whole intermediate units, or nothing."""
    shuffle: bool = True
    """Shuffle the intermediate units of each copy before experts are cut from them."""
    router: Literal["random", "copies", "zeros"] = "random"
    """How the router starts: N(0, init_std), the same but one row for all experts of a copy, or zeros."""
    match_dense: bool = False
    """Scale the experts' outputs so that without re-initialisation the model says what the dense one said. Needs
    norm_topk_prob, router=copies, and whole copies in the experts, in top_k and in the shared expert."""


class UpcycleJob(UpcycleSettings, JobBase):
    """Turn a dense checkpoint into a mixture of experts, the Qwen2 way."""

    kind: Literal["upcycle"] = "upcycle"
    parent: Path
    """Dense checkpoint folder."""
