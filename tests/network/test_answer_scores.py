"""Scores of chosen tokens after texts that are padded on either side, against each text alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import InputError, answer_scores, predict

TOKENS = [[3, 5, 7], [4, 6], [8, 3, 3, 9, 5], [2, 7, 7]]
ANSWERS = [9, 2, 4]


class _Positions(nn.Module):
    """A causal model with learned positions: each token's score sums over what the mask shows before it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(11, 6), nn.Embedding(8, 6), nn.Linear(6, 11)
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Any:
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids) if position_ids is None else position_ids
        x = (self.words(input_ids) + self.places(places)).tanh() * attention_mask[:, :, None]
        return self.head(x.cumsum(1).tanh())


def padded(side: str) -> dict[str, Tensor]:
    length = max(map(len, TOKENS)) + 1
    rows, masks = [], []
    for tokens in TOKENS:
        empty = [0] * (length - len(tokens))
        rows.append(empty + tokens if side == "left" else tokens + empty)
        masks.append(empty + [1] * len(tokens) if side == "left" else [1] * len(tokens) + empty)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_padded_on_either_side_are_as_alone(side: str) -> None:
    model = _Positions()
    alone = [model(torch.tensor([row]), torch.ones(1, len(row)))[0, -1, ANSWERS] for row in TOKENS]
    found = answer_scores(ANSWERS)(model, padded(side))
    torch.testing.assert_close(found, torch.stack(alone))
    single = {"input_ids": torch.tensor([TOKENS[2]]), "attention_mask": torch.ones(1, 5).long()}
    torch.testing.assert_close(answer_scores(ANSWERS)(model, single), alone[2][None])


def test_without_a_mask_every_token_counts_and_given_positions_stay() -> None:
    words = nn.Embedding(11, 11)
    ids = torch.tensor([[1, 2], [3, 4]])
    found = answer_scores([5, 0])(_Returns(words), {"input_ids": ids})
    assert torch.equal(found, words.weight[[2, 4]][:, [5, 0]])
    model = _Positions()
    inputs = {**padded("right"), "position_ids": torch.ones(4, 6).long()}
    wanted = model(**inputs)[torch.arange(4), [len(row) - 1 for row in TOKENS]][:, ANSWERS]
    torch.testing.assert_close(answer_scores(ANSWERS)(model, inputs), wanted)


class _Returns(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.inner(input_ids)  # type: ignore[no-any-return]


def test_as_a_classifier_of_the_library() -> None:
    model, target = _Positions(), torch.tensor([0, 2, 1, 0])
    found = predict(model, [(padded("left"), target)], forward_fn=answer_scores(ANSWERS), progress=False)
    assert found.n_classes == 3 and found.target.tolist() == target.tolist()
    assert torch.equal(torch.from_numpy(found.scores["model"]), answer_scores(ANSWERS)(model, padded("left")))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "OPTForCausalLM"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers(transformers: Any, name: str, side: str) -> None:
    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {
        "GPT2LMHeadModel": {**sizes, "bos_token_id": 1, "eos_token_id": 2},
        "LlamaForCausalLM": {**sizes, "intermediate_size": 20, "num_key_value_heads": 2},
        "OPTForCausalLM": {**sizes, "ffn_dim": 20, "word_embed_proj_dim": 16},
    }[name]
    model_class = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = model_class(model_class.config_class(**own)).double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row])).logits[0, -1, ANSWERS] for row in TOKENS]
        found = answer_scores(ANSWERS)(model, padded(side))
    # rotary angles are computed in single precision
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: answer_scores([3]), "at least two different ones"),
        (lambda: answer_scores([3, 3]), "at least two different ones"),
        (lambda: answer_scores([3, -1]), "a token"),
        (lambda: answer_scores([3, 0.5]), "a token"),  # type: ignore[list-item]
        (lambda: answer_scores([3, 4])(nn.Identity(), torch.ones(2, 3)), "expected a dict with input_ids"),
        (lambda: answer_scores([3, 11])(_Positions(), padded("left")), "K above every answer"),
        (lambda: answer_scores([3, 4])(nn.Embedding(3, 7), {"input": torch.ones(1, 2).long()}), r"\['input'\]"),
    ],
)
def test_refused(make: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()
