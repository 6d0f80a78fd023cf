"""Small transformers of every family, and what tests do with each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.huggingface import Part, example_inputs, next_token_labels, pruning_options, update_sizes


@dataclass(frozen=True)
class Family:
    """How to build a small classifier of a kind; sizes are pairwise different.

    Attributes:
        name: Prefix of its classes.
        head: Suffix of the class of the classifier.
        sizes: Its config.
        heads: Name of its number of heads in the attention modules, if they keep it.
        intermediate: Name of its width in the config.
        own_head_size: Whether the config can say how large a head is.
    """

    name: str
    sizes: dict[str, Any]
    head: str = "ForSequenceClassification"
    heads: str = "num_attention_heads"
    intermediate: str = "intermediate_size"
    own_head_size: bool = False

    def model(self, transformers: Any, *, attention: str = "sdpa", seed: int = 0, **sizes: Any) -> Any:
        config = getattr(transformers, f"{self.name}Config")(
            **{"num_labels": 3, **self.sizes, **sizes}, attn_implementation=attention
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, f"{self.name}{self.head}")(config).double().eval()
            for parameter in model.parameters():  # its initial weights give scores that hardly depend on anything
                nn.init.normal_(parameter, std=0.4)
        return model

    def batches(self, padding: int = 0) -> list[Any]:
        """(inputs, labels, people) of 11 samples; texts of different lengths, with so much more padding."""
        draw = torch.Generator().manual_seed(3)
        y, people = torch.randint(0, 3, (11,), generator=draw), torch.arange(11) % 3
        if self.head == "ForImageClassification":
            images = torch.randn(11, 2, 12, 8, generator=draw, dtype=torch.float64)
            return [({"pixel_values": images[a:b]}, y[a:b], people[a:b]) for a, b in ((0, 6), (6, 11))]
        ids = torch.randint(4, 31, (11, 7), generator=draw)
        mask = (torch.arange(7 + padding) < 3 + torch.arange(11).unsqueeze(1) % 5).long()
        ids = nn.functional.pad(ids, (0, padding)) * mask + self.sizes["pad_token_id"] * (1 - mask)
        if self.head != "ForSequenceClassification":
            y = next_token_labels(ids.masked_fill(mask == 0, -100))
        return [
            ({"input_ids": ids[a:b], "attention_mask": mask[a:b]}, y[a:b], people[a:b]) for a, b in ((0, 6), (6, 11))
        ]


_TEXT = {"vocab_size": 31, "max_position_embeddings": 23, "pad_token_id": 1}
_SIZES = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 27}
FAMILIES = {
    "bert": Family("Bert", {**_TEXT, **_SIZES}),
    "roberta": Family("Roberta", {**_TEXT, **_SIZES}),
    "distilbert": Family(
        "DistilBert",
        {**_TEXT, "dim": 20, "n_layers": 2, "n_heads": 4, "hidden_dim": 27},
        heads="n_heads",
        intermediate="hidden_dim",
    ),
    "vit": Family(
        "ViT", {**_SIZES, "image_size": (12, 8), "patch_size": 4, "num_channels": 2}, head="ForImageClassification"
    ),
    "gpt2": Family(
        "GPT2",
        {**_TEXT, "bos_token_id": 2, "eos_token_id": 3, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_inner": 27},
        heads="num_heads",
        intermediate="n_inner",
    ),
    "llama": Family("Llama", {**_TEXT, **_SIZES, "head_dim": 6, "num_key_value_heads": 4}, own_head_size=True),
}
_LANGUAGE = {**_TEXT, "bos_token_id": 2, "eos_token_id": 3, **_SIZES, "hidden_size": 24}
_GROUPED = {**_LANGUAGE, "num_attention_heads": 6, "num_key_value_heads": 3}
GROUPED = {
    name.lower(): Family(name, {**_GROUPED, **sizes}, head="ForCausalLM", own_head_size=True)
    for name, sizes in {
        "Llama": {"head_dim": 8},
        "Qwen2": {},
        "Qwen3": {"head_dim": 4, "tie_word_embeddings": True},
        "Mistral": {},
        "Gemma": {"head_dim": 6},
        "Phi3": {},
    }.items()
}
"""Causal language models whose six query heads share three heads of keys and values."""

LANGUAGE = {
    **GROUPED,
    "gpt2": Family("GPT2", FAMILIES["gpt2"].sizes, head="LMHeadModel", heads="num_heads", intermediate="n_inner"),
    "opt": Family(
        "OPT",
        {**{k: v for k, v in _LANGUAGE.items() if k != "intermediate_size"}, "hidden_size": 20, "ffn_dim": 27},
        head="ForCausalLM",
        heads="num_heads",
        intermediate="ffn_dim",
    ),
}
SINGLE_PRECISION = {"llama": 1e-5}  # its norms compute in float32 whatever the weights are


def make_pruner(model: nn.Module, importance: Any, *parts: Part, **options: Any) -> tp.pruner.BasePruner:
    arguments = {"pruning_ratio": 0.3, "head_pruning_ratio": 0.4, **pruning_options(model, parts), **options}
    return tp.pruner.BasePruner(model, example_inputs(model), importance=importance, **arguments)


def scores_of(model: nn.Module, batches: list[Any]) -> Tensor:
    outputs = [model(**inputs) for inputs, _, _ in batches]
    return torch.cat([getattr(output, "logits", output) for output in outputs])


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def update(model: nn.Module, pruner: tp.pruner.BasePruner | None = None) -> str:
    """What the config can't say; other warnings are errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        update_sizes(model, pruner)
    assert len(caught) <= 1 and all("Config can't say that" in str(warning.message) for warning in caught)
    return "; ".join(str(warning.message) for warning in caught)
