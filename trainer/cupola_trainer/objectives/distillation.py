"""Distillation of a teacher's next-token distributions, on the text of another objective."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models
from cupola_trainer.checkpoint.compatibility import check_tokenizer
from cupola_trainer.config import DistillationData, LayoutConfig, ModelConfig, NextTokenData
from cupola_trainer.config.layout_rules import of_its_own, validate_layout
from cupola_trainer.data.batches import Batch
from cupola_trainer.data.teachings import Teachings
from cupola_trainer.forward import outputs
from cupola_trainer.objectives import next_token, sft
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.distillation import distillation_loss, token_logprobs, topk_distillation_loss

HIDDEN = "teacher_hidden"
"""Batch key of the live teacher's last hidden states; empty on all pipeline stages but the last."""


def build(inputs: ObjectiveInputs) -> Objective:
    """Build distillation from a live or stored teacher on the text of next_token or sft.

    Raises:
        ConfigError, SourceError: the teacher does not fit, or the data are missing, malformed or too few.
    """
    data: DistillationData = inputs.data
    base = next_token if isinstance(data.text, NextTokenData) else sft
    text = base.build(replace(inputs, data=data.text, name=data.text.objective))
    if data.stored:
        return StoredTeacher(data, text)
    assert inputs.model
    assert data.teacher
    check_tokenizer(inputs.tokenizer, data.teacher)
    return LiveTeacher(data, text, student=inputs.model, layout=inputs.layout)


class DistillationObjective(Objective):
    """Divergence from a teacher, on the text and with the loss mask of next_token or sft."""

    name = "distillation"
    reads = "logits"

    def __init__(self, data: DistillationData, text: Objective) -> None:
        self.data, self.text, self.drops = data, text, text.drops

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return self.text.sample(index)

    def expect(self, samples: Sequence[int]) -> None:
        self.text.expect(samples)

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return self.text.heldout(index)

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        return self.text.collate(samples)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sums of the divergence and the token loss over the loss mask."""
        group, mask = parallel_state.get_tensor_model_parallel_group(), batch["loss_mask"]
        divergence = (self.divergences(output, batch) * mask).sum()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.data.token_loss > 0):
            token_losses = -token_logprobs(output.float(), batch["labels"][..., None], group).squeeze(-1)
        token_loss = (token_losses * mask).sum()
        sums = {"divergence": divergence.detach(), "token_loss": token_loss.detach()}
        if self.data.token_loss:
            divergence = divergence + self.data.token_loss * token_loss
        return divergence, self.count(batch), sums

    @abstractmethod
    def divergences(self, logits: Tensor, batch: Batch) -> Tensor:
        """Divergence at each token [b, s] from the student's logits [b, s, v / tp]."""


class LiveTeacher(DistillationObjective):
    """A teacher in memory next to the student, in the same layout.

    Its hidden states are kept for all micro-batches of a step; logits are computed from them one micro-batch at a time.
    """

    def __init__(self, data: DistillationData, text: Objective, *, student: ModelConfig, layout: LayoutConfig) -> None:
        """
        Raises:
            ConfigError: the teacher's vocabulary differs from the student's, it has no language-model head,
                or it does not fit the layout.
            CorruptArtifactError: the teacher's checkpoint does not verify.
        """
        super().__init__(data, text)
        assert data.teacher
        model = checkpoint.read_model(data.teacher)
        if model.is_scalar or model.vocab_size != student.vocab_size:
            what = "has no language-model head" if model.is_scalar else f"has vocab_size={model.vocab_size}"
            raise ConfigError(
                f"the teacher {data.teacher} {what}; the student has vocab_size={student.vocab_size}. "
                "Distillation compares distributions over one vocabulary. Give a teacher with the student's tokenizer."
            )
        layout = of_its_own(model, layout)
        validate_layout(model, layout)
        self.teacher = models.build(model, layout, seed=None)
        checkpoint.load_weights(data.teacher, self.teacher)
        for chunk in self.teacher:
            chunk.eval()
            chunk.headless = True

    def enrich(self, batches: Sequence[Batch]) -> None:
        """Add the teacher's hidden states; computed only once for the held-out batches."""
        if HIDDEN in batches[0]:
            return
        hidden = outputs.hidden_states(self.teacher, batches)
        for number, batch in enumerate(batches):
            batch[HIDDEN] = hidden[number] if hidden else torch.empty(0)

    def divergences(self, logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher[-1].logits(batch[HIDDEN])
        return distillation_loss(
            logits,
            teacher,
            divergence=self.data.divergence,
            temperature=self.data.temperature,
            beta=self.data.beta,
            group=parallel_state.get_tensor_model_parallel_group(),
        )


class StoredTeacher(DistillationObjective):
    """A teacher whose top-k log-probabilities of these samples were stored beforehand."""

    def __init__(self, data: DistillationData, text: Objective) -> None:
        """
        Raises:
            ConfigError: `data.stored` is not such an artifact, or was made at another temperature.
        """
        super().__init__(data, text)
        assert data.stored
        self.teachings = Teachings(data.stored)
        if self.teachings.temperature != data.temperature:
            raise ConfigError(
                f"{data.stored} was written at temperature={self.teachings.temperature}, but this job has "
                f"temperature={data.temperature}. Write it again, or use its temperature."
            )

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """The text's batch plus "teacher_tokens" and "teacher_logprobs" [b, s, k].

        Raises:
            ConfigError: a sample is not stored.
        """
        batch = self.text.collate(samples)
        tokens, logprobs = self.teachings.of(batch["tokens"].numpy())
        return {**batch, "teacher_tokens": torch.from_numpy(tokens), "teacher_logprobs": torch.from_numpy(logprobs)}

    def divergences(self, logits: Tensor, batch: Batch) -> Tensor:
        return topk_distillation_loss(
            logits,
            batch["teacher_logprobs"],
            batch["teacher_tokens"],
            divergence=self.data.divergence,
            temperature=self.data.temperature,
            beta=self.data.beta,
            group=parallel_state.get_tensor_model_parallel_group(),
        )
