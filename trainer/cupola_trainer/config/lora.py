"""Settings of low-rank adapters."""

from typing import Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_platform.strict import STRICT
from cupola_trainer.config.layout import LayoutConfig
from cupola_trainer.config.model.architecture import ModelConfig

LoraTarget = Literal["attention", "mlp", "experts"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraConfig:
    """LoRA (Hu et al. 2021): y = W x + alpha / rank * B A x, with W frozen. B starts at zero, A as in PEFT."""

    rank: int = Field(default=16, ge=1)
    """Rows of A, columns of B."""

    alpha: float = Field(default=32.0, gt=0)
    """The adapters' output is multiplied by alpha / rank."""

    targets: tuple[LoraTarget, ...] = ("attention", "mlp")
    """Layers to adapt: attention projections; the dense FFN or the shared expert; the routed experts."""

    @field_validator("targets")
    @classmethod
    def _not_empty(cls, targets: tuple[LoraTarget, ...]) -> tuple[LoraTarget, ...]:
        if not targets:
            raise ValueError("targets is empty: nothing would be trained. Give attention, mlp or experts")
        return targets

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def check(self, model: ModelConfig, layout: LayoutConfig) -> None:
        """Check that the model and layout support these adapters.

        Raises:
            ConfigError: they do not.
        """
        moe = model.moe
        if "experts" in self.targets and moe is None:
            raise ConfigError("lora.targets: experts, but the model is dense. Use attention and mlp.")
        if self.targets == ("mlp",) and moe and not moe.shared_expert_ffn_hidden_size:
            raise ConfigError("lora.targets: mlp, but the model has only routed experts. Use experts.")
        if moe and moe.balancing == "bias":
            raise ConfigError(
                "lora with moe.balancing=bias: training moves the bias, which adapters do not store. Leave lora out."
            )
        etp = layout.etp or (1 if layout.ep > 1 else layout.tp)
        if "experts" in self.targets and etp > 1:
            raise ConfigError(f"lora.targets: experts with etp={etp}: adapters need whole experts. Use etp=1, or ep.")
