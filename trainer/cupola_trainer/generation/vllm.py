"""vLLM next to training, one engine per GPU, each with a full copy of the model: `rollout: {engine: vllm}`.

Weights come from the model in training over the process groups, tensor by tensor; only a config.json is written to
disk. Between rollouts vLLM sleeps and frees its memory for training. Responses differ from the Megatron engine's,
because kernels and sampling differ. Training is unaffected, since it computes log-probabilities itself.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig
from cupola_trainer.conversion.config_json import to_config
from cupola_trainer.conversion.model_reader import huggingface_weights
from cupola_trainer.data.tokenizer_folders import stop_ids
from cupola_trainer.generation.batch import Completion
from cupola_trainer.generation.generation import check_prompts
from cupola_trainer.generation.sampling import Sampling

PRIME = 1_000_003
"""Distance between the seeds of two rollouts, so that their responses do not share seeds."""


class VllmEngine:
    """An `Engine` on top of `vllm.LLM`."""

    def __init__(
        self, chunks: Sequence[torch.nn.Module], tokenizer: Any, model: ModelConfig, memory_share: float
    ) -> None:
        """
        Args:
            memory_share: share of a GPU's memory for vLLM's weights and cache.

        Raises:
            ConfigError: vLLM is not installed, or transformers does not support the model.
        """
        try:
            import vllm
        except ImportError as error:
            raise ConfigError(
                f"rollout.engine=vllm: {error}. Install vllm on the training machines, or use rollout.engine=megatron."
            ) from None
        self._vllm, self.chunks, self.model = vllm, chunks, model
        self._stops, self._tokens = stop_ids(tokenizer), len(tokenizer)
        self._longest: int = model.max_position_embeddings
        config = to_config(model, dtype=_name(chunks), bos=None, eos=self._stops, pad=None)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # its model must run in this process
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            self._llm = vllm.LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype=_name(chunks),
                max_model_len=self._longest,
                gpu_memory_utilization=memory_share,
                distributed_executor_backend="external_launcher",  # torchrun has already started the processes
                enable_sleep_mode=True,
                seed=0,
            )
        self._llm.sleep(level=2)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        """Each rank continues its share of the prompts; all get every completion."""
        check_prompts(prompts, self._longest)
        self._llm.wake_up(tags=["weights"])
        receiver = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        for tensor in huggingface_weights(self.chunks, self.model):
            receiver.load_weights([tensor])
        self._llm.reset_prefix_cache()
        self._llm.wake_up(tags=["kv_cache"])
        mine = range(runtime.rank(), len(prompts), runtime.world_size())
        responses = self._llm.generate(
            [{"prompt_token_ids": prompts[i]} for i in mine],
            sampling_params=[self._parameters(sampling, len(prompts[i]), seed * PRIME + i) for i in mine],
            use_tqdm=False,
        )
        self._llm.sleep(level=2)
        parts: list[Any] = [None] * runtime.world_size()
        dist.all_gather_object(parts, [_completion(response.outputs[0]) for response in responses])
        return [parts[i % len(parts)][i // len(parts)] for i in range(len(prompts))]

    def _parameters(self, sampling: Sampling, prompt_tokens: int, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=min(sampling.max_new_tokens, self._longest - prompt_tokens),
            stop_token_ids=self._stops,
            allowed_token_ids=list(range(self._tokens)) if self._tokens < self.model.vocab_size else None,
            logprobs=0,  # only the sampled token's
            detokenize=False,
            seed=seed % 2**31,
        )


def _completion(output: Any) -> Completion:
    tokens = list(output.token_ids)
    logprobs = [float(place[token].logprob) for place, token in zip(output.logprobs, tokens, strict=True)]
    return Completion(tokens, logprobs, output.finish_reason == "stop")


def _name(chunks: Sequence[torch.nn.Module]) -> str:
    return str(next(chunks[0].parameters()).dtype).removeprefix("torch.")
