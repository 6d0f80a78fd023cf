"""Language models and transformers of Hugging Face on a device other than the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import SentencePairs
from fairtrim_adapters.huggingface import (
    StereoSetContext,
    compare_language_models,
    example_inputs,
    next_token_labels,
    pruning_options,
    text_loader,
    update_sizes,
)
from fairtrim_adapters.torch_pruning import IMPORTANCES
from tests.pretend_accelerator import Accelerator, PretendAccelerator
from tests.zoo_huggingface import FAMILIES

CPU = torch.device("cpu")
LETTERS = "abcdefg hij"


def tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
    return {"input_ids": [[LETTERS.index(letter) for letter in text] for text in texts]}


class Bigrams(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding, self.head = nn.Embedding(12, 4), nn.Linear(4, 12)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embedding(input_ids).tanh())
        return scores


def test_a_comparison_of_language_models(accelerator: Accelerator) -> None:
    texts = text_loader(["abc", "gh", "fade", "bed bad"], tokenizer, {"sex": ["f", "m", "m", "f"]}, batch_size=3)
    pairs = SentencePairs.of_tokens([[0, 1, 2], [7, 0], [6, 0, 3]], [[3, 1, 2], [1, 0], [9, 0, 3]])
    contexts = [StereoSetContext("abc de", "abf de", "abj de", "abBLANK de", "p", "t")]

    def compared(device: torch.device) -> list[Any]:
        models = {"dense": Bigrams(1).to(device), "pruned": Bigrams(2).to(device)}
        table = compare_language_models(
            models, texts, pairs=pairs, contexts=contexts, tokenizer=tokenizer, progress=False
        )
        return [table.overall.to_numpy(float).tolist(), table.texts_by_group.to_numpy(float).tolist()]

    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    accelerator.check_same(compared(accelerator.device), compared(CPU), other_kernels=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_transformers_are_pruned(family: str, transformers: Any, accelerator: Accelerator) -> None:
    def pruned(device: torch.device) -> tuple[list[list[int]], Tensor]:
        model = FAMILIES[family].model(transformers, attention="eager", num_labels=3).float().to(device)
        importance = IMPORTANCES["worst-group"]()
        example = example_inputs(model)
        assert all(value.device == device for value in example.values())
        options = pruning_options(model, prune=["intermediate", "heads"])
        pruner = tp.pruner.BasePruner(model, example, importance=importance, pruning_ratio=0.5, **options)
        batches = [
            ({name: value.float() if value.is_floating_point() else value for name, value in x.items()}, y, a)
            for x, y, a in FAMILIES[family].batches()[:1]
        ]
        importance.fit(pruner, batches, output_transform=lambda out: out.logits, progress=False)
        pruner.step()
        update_sizes(model, pruner)
        with torch.no_grad():
            scores = model(**{name: value.to(device) for name, value in batches[0][0].items()}).logits
        return [list(parameter.shape) for parameter in model.parameters()], scores

    (shapes, found), (own, expected) = pruned(accelerator.device), pruned(CPU)
    assert shapes == own
    accelerator.check_same(found, expected, other_kernels=True)
    labels = torch.tensor([[4, 5, 6]], device=accelerator.device)
    accelerator.check_same(next_token_labels(labels), next_token_labels(labels.cpu()))
