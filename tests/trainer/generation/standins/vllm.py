"""A stand-in for vLLM, which needs a GPU: the part of its interface used by Cupola, on top of transformers.

It shows that current weights arrive complete and responses come back in order, not that vLLM works.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM


class SamplingParams(SimpleNamespace):
    """Sampling settings of one prompt."""


class LLM:
    def __init__(self, model: str, **options: Any) -> None:
        assert [path.name for path in Path(model).iterdir()] == ["config.json"]
        assert options["load_format"] == "dummy"
        self.config = AutoConfig.from_pretrained(model)
        self.awake: set[str] = {"weights", "kv_cache"}
        self.received: dict[str, torch.Tensor] = {}
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load))
        worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=worker)

    def sleep(self, level: int) -> None:
        """Level 2 discards the weights."""
        assert level == 2
        self.awake, self.received = set(), {}

    def wake_up(self, tags: list[str]) -> None:
        self.awake |= set(tags)

    def reset_prefix_cache(self) -> None:
        assert self.received

    def _load(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        assert "weights" in self.awake
        self.received |= {name: tensor.clone() for name, tensor in tensors}

    @torch.no_grad()
    def generate(self, prompts: list[Any], sampling_params: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        with tempfile.TemporaryDirectory() as folder:
            self.config.save_pretrained(folder)
            save_file(self.received, f"{folder}/model.safetensors", metadata={"format": "pt"})
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
        requests = zip((prompt["prompt_token_ids"] for prompt in prompts), sampling_params, strict=True)
        return [_response(model, prompt, parameters) for prompt, parameters in requests]


def _response(model: Any, prompt: list[int], parameters: SamplingParams) -> Any:
    assert parameters.temperature == 0, "greedy only"
    tokens: list[int] = []
    places = []
    while len(tokens) < parameters.max_tokens and (not tokens or tokens[-1] not in parameters.stop_token_ids):
        logps = model(torch.tensor([prompt + tokens])).logits[0, -1].float().log_softmax(-1)
        allowed = parameters.allowed_token_ids or range(len(logps))
        token = max(allowed, key=lambda candidate: float(logps[candidate]))
        tokens.append(token)
        places.append({token: SimpleNamespace(logprob=float(logps[token]))})
    reason = "stop" if tokens[-1] in parameters.stop_token_ids else "length"
    return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=places, finish_reason=reason)])
