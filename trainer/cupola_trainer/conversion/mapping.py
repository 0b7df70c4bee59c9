"""A model's tensors by transformers' names, and back, by the rules of its family."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion import families
from cupola_trainer.conversion.tensor_rules import EMBEDDING, OUTPUT, Read, Rule


def rules(model: ModelConfig) -> list[Rule]:
    """One rule per tensor of a model, from its family, or the nearest family if it belongs to none."""
    return families.nearest(model).rules(model)


def to_huggingface(model: ModelConfig, read: Read) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that transformers needs, by name; holds one checkpoint tensor of one layer at a time."""
    yield from held_tensors(model, read)
    yield from families.nearest(model).padding(model, read)


def held_tensors(model: ModelConfig, read: Read) -> Iterator[tuple[str, Tensor]]:
    """The same without the padding that only transformers needs."""
    for rule in rules(model):
        for index, names in rule.places(model):
            for name, part in zip(names, rule.layout.split(read(rule.key, index)), strict=True):
                yield name, part.contiguous()


def from_huggingface(model: ModelConfig, key: str, index: tuple[int, ...], read: Callable[[str], Tensor]) -> Tensor:
    """One checkpoint tensor, at an index into its leading dimensions, from transformers' tensors.

    Raises:
        KeyError: the model has no tensor with that key.
    """
    rule = {rule.key: rule for rule in rules(model)}[key]
    return rule.layout.join([read(name) for name in rule.names_at(index)])


def tied_names(model: ModelConfig) -> tuple[str, str] | None:
    """transformers' names of the embedding and of the output layer tied to it; None if they are not tied."""
    if not model.tie_embeddings:
        return None
    untied = {rule.key: rule for rule in rules(replace(model, tie_embeddings=False, head="language_model"))}
    return untied[EMBEDDING].names[0], untied[OUTPUT].names[0]
