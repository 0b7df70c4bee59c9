"""Megatron's GPTModel with what some families add outside the layers."""

import math
from typing import Any

import torch
from megatron.core import parallel_state

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.models.attention.contexts import zigzag
from cupola_trainer.models.attention.rope import Rotary
from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.models.decoder_config import DecoderConfig
from cupola_trainer.models.output import ModelWithLoss
from cupola_trainer.models.specs import decoder
from cupola_trainer.runtime.copies import to_device


class LanguageModel(ModelWithLoss):
    """One rank's part of a decoder, with any RoPE scaling, scaled embeddings and soft-capped logits."""

    def __init__(self, model: ModelConfig, config: DecoderConfig, vp_stage: int | None) -> None:
        super().__init__(
            config,
            decoder(config, vp_stage),
            vocab_size=model.vocab_size,
            max_sequence_length=model.max_position_embeddings,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=model.tie_embeddings and not model.is_scalar,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            vp_stage=vp_stage,
            softcap=model.final_logit_softcapping,
            scalar=model.is_scalar,
        )
        self.rotary_pos_emb = Rotary(model, self.pg_collection.cp)
        if model.scale_embeddings and self.pre_process:
            # rounded to the weights' precision, as in Gemma's training
            scale = torch.tensor(math.sqrt(model.hidden_size), dtype=config.params_dtype, device="cpu").item()
            self.embedding.register_forward_hook(lambda module, inputs, output: output * scale)

    def _preprocess(self, *args: Any, packed_seq_params: Texts | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Megatron's, but that positions start anew in each of several texts."""
        made: tuple[Any, ...] = super()._preprocess(*args, **kwargs)
        if packed_seq_params is None:
            return made
        places = packed_seq_params.places()
        cp = self.pg_collection.cp
        if cp.size() > 1:
            own = zigzag(places[0].size(1) // cp.size(), cp.rank(), cp.size())
            places = places[0][:, own], places[1][:, own]
        angles = self.rotary_pos_emb.at(*map(to_device, places))
        return made[0], angles.transpose(0, 1)[:, :, None], *made[2:]
