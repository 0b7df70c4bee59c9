"""Jobs that turn checkpoints into a new one without training: merge, fold in adapters, prune, upcycle."""

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
    """Settings that every job has."""

    output: Path
    """The job's folder: metrics.jsonl, result.json, error.json and its output. Running again in it resumes."""
    seed: int = 0


class MergeSettings(Strict):
    """How to merge checkpoints of one architecture."""

    method: MergeMethod = "average"
    weights: tuple[float, ...] | None = None
    """One weight per checkpoint; only their ratios matter. None for equal weights."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of each task vector to keep: the largest entries (ties) or random ones (dare). None for TIES's 0.2."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the merged task vector (ties and dare)."""

    def check_count(self, count: int, *, has_base: bool) -> None:
        """Check that the settings fit the checkpoints.

        Args:
            count: number of checkpoints to merge.

        Raises:
            ValueError: a setting does not fit.
        """
        if count < 2:
            raise ValueError(f"{count} checkpoint to merge: give at least two")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"{len(self.weights)} weights for {count} checkpoints: give one per checkpoint")
        if self.weights is not None and (any(weight < 0 for weight in self.weights) or sum(self.weights) <= 0):
            raise ValueError(
                f"weights={list(self.weights)}: weights must be at least 0, with one above 0. Raise the others"
            )
        if self.method in ("ties", "dare") and not has_base:
            raise ValueError(
                f"method={self.method} needs a base: set `base` to the checkpoint that all were trained from"
            )
        if self.method == "average" and has_base:
            raise ValueError("method=average with a base: a base does not change the average. Leave it out")
        if self.method in ("average", "slerp") and self.density is not None:
            raise ValueError(
                f"density={self.density} with method={self.method}: only ties and dare use a density. Leave it out"
            )


class MergeJob(MergeSettings, JobBase):
    """Merge checkpoints of one architecture into one."""

    kind: Literal["merge"] = "merge"
    checkpoints: tuple[Path, ...]
    """Checkpoint folders; tokenizer and precision come from the first."""
    base: Path | None = None
    """The checkpoint that all were trained from: the origin of the task vectors of ties, dare and, if given, slerp."""

    @model_validator(mode="after")
    def _can_be(self) -> "MergeJob":
        self.check_count(len(self.checkpoints), has_base=self.base is not None)
        return self


class MergeAdapterJob(JobBase):
    """Fold low-rank adapters into the model they were trained on."""

    kind: Literal["merge_adapter"] = "merge_adapter"
    parent: Path
    """The model's checkpoint folder."""
    adapter: Path
    """The adapters' checkpoint folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PruneTarget:
    """The sizes of a pruned model; omitted ones stay unchanged."""

    num_layers: int | None = Field(default=None, ge=1)
    """Layers to keep: the ones that change their input most."""
    drop_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers to drop instead, numbered from 0."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Channels of the residual stream, the same ones in every layer."""
    num_attention_heads: int | None = Field(default=None, ge=1)
    """Query heads, the same number in every group."""
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
        """Whether the choice needs held-out tokens: true unless only `drop_layers` is set."""
        return any(
            getattr(self, field.name) is not None for field in dataclasses.fields(self) if field.name != "drop_layers"
        )

    def check(self, has_tokens: bool) -> None:
        """Check that the target is complete and consistent.

        Raises:
            ValueError: it sets nothing, sets both ways to choose layers, or needs tokens that are missing.
        """
        if not self.by_importance and not self.drop_layers:
            raise ValueError("nothing to prune: set a smaller size, such as num_layers")
        if self.num_layers and self.drop_layers:
            raise ValueError(
                "num_layers and drop_layers both set: num_layers picks layers by importance. Set one of them"
            )
        if self.by_importance and not has_tokens:
            raise ValueError("importance is measured on held-out text: give `tokens`")

    def shape(self, model: ModelConfig, layers: tuple[int, ...] | None = None) -> ModelConfig:
        """The pruned model's configuration. Head width and experts per token are unchanged.

        Args:
            layers: the layers kept, if known; their attention windows are kept with them.

        Raises:
            ConfigError: a size exceeds the model's or does not fit the others.
        """
        sizes = {"hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "num_layers"}
        changed: dict[str, Any] = {name: self._size(name, getattr(model, name)) for name in sizes}
        if self.drop_layers:
            if (last := max(self.drop_layers)) >= model.num_layers:
                raise ConfigError(f"drop_layers: {last} is not one of the model's layers, 0 to {model.num_layers - 1}.")
            changed["num_layers"] = model.num_layers - len(set(self.drop_layers))
            if not changed["num_layers"]:
                raise ConfigError(f"drop_layers names all {model.num_layers} layers of the model. Keep at least one.")
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
                    f"Keep at least {model.moe.top_k}."
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
            raise ConfigError(f"{name}={wanted}, but the model has {now or 'none'}: pruning can only shrink it.")
        return wanted


class PruneSettings(Strict):
    """The target sizes, and how much text to measure importance on."""

    to: PruneTarget
    """Sizes of the pruned model."""
    max_tokens: int = Field(default=65_536, ge=1)
    """Held-out tokens to measure importance on."""
    sequence_length: int = Field(default=512, ge=8)
    """Maximum tokens per sequence, capped at the model's maximum length."""


class PruneJob(PruneSettings, JobBase):
    """Shrink a model by removing whole layers, channels, heads, units and experts."""

    kind: Literal["prune"] = "prune"
    parent: Path
    """Checkpoint folder."""
    tokens: Path | None = None
    """Folder of a `tokens` artifact; importance is measured on its held-out shards."""

    @model_validator(mode="after")
    def _can_be(self) -> "PruneJob":
        self.to.check(self.tokens is not None)
        return self


class UpcycleSettings(Strict):
    """How dense FFNs become experts."""

    moe: MoEConfig
    reinit_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of each expert's parameters to re-initialize."""
    reinit: Literal["element", "unit", "none"] = "element"
    """What to re-initialize: single weights, whole intermediate units, or nothing."""
    shuffle: bool = True
    """Shuffle each copy's intermediate units before splitting it into experts."""
    router: Literal["random", "copies", "zeros"] = "random"
    """Router initialization: N(0, init_std); the same with one row shared by the experts of a copy; or zeros."""
    match_dense: bool = False
    """Scale the experts' outputs so that, without re-initialization, the model computes the dense model's function.
    Requires norm_topk_prob, router=copies, and whole copies in the experts, in top_k and in the shared expert."""


class UpcycleJob(UpcycleSettings, JobBase):
    """Turn a dense checkpoint into a mixture of experts, as Qwen2 does."""

    kind: Literal["upcycle"] = "upcycle"
    parent: Path
    """Dense checkpoint folder."""
