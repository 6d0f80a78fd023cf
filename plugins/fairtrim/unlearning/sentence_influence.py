"""Which sentences push the two sides of pairs apart: influence on a language model's bias. Ours, after FMD."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairtrim.arguments import RandomState, random_generator, require_number
from fairtrim.data.sentence_pairs import SentencePairs
from fairtrim.devices import model_device
from fairtrim.errors import InputError
from fairtrim.network.copied_network import copied_network
from fairtrim.network.late_blocks import LateBlocks
from fairtrim.network.pair_differences import next_token_scores, shared_log_likelihoods
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import every_module_in_eval_mode, preserved_random_state
from fairtrim.progress import progress_bar

from .bias_influence import BiasInfluence
from .linearised_pairs import LinearisedPairs
from .sentence_batches import pair_batches, predicting, sentences_of, text_batches, text_losses

__all__ = ["influence_of_sentences"]


def influence_of_sentences(
    model: nn.Module,
    texts: Iterable[Any],
    pairs: SentencePairs,
    *,
    edited_layers: Sequence[str] | None = None,
    n_blocks: int = 1,
    damping: float = 1.0,
    batch_size: int = 16,
    random_state: RandomState = 0,
    progress: bool = True,
) -> BiasInfluence:
    """Influence of every sentence of some texts on the mean |ΔLL| of pairs, I(z) = −∇Bᵀ H⁻¹ ∇ℓ(z).

    ℓ(z) is the mean cross-entropy of the tokens of a sentence, H the Gauss-Newton matrix of the texts in K-FAC's form
    (see ``fairtrim.unlearning.linearised_pairs``), and the parameters are the weights of a few late layers. The model
    is taken as it is: far from the optimum of these texts the scores say which sentences would push the pairs apart in
    a step of fine-tuning, not what leaving them out of the training would have done.

    Args:
        model: A causal language model that takes ``input_ids`` and ``attention_mask``; left as it was.
        texts: Batches of ``{"input_ids", "attention_mask"}``, (N, T) each, alone or first in a tuple.
        pairs: Whom the bias is of.
        edited_layers: Names of the layers; None for the linear layer that each of the last blocks calls last.
        n_blocks: How many of the last blocks those are.
        damping: Added to the factors of H, in units of their mean diagonal.
        batch_size: Pairs a forward pass; twice as many sentences.
        random_state: Seed, or a torch.Generator, of the tokens that H is drawn from.
        progress: Show a progress bar.

    Returns:
        The influence, in the order of the sentences; ``bias`` is the mean |ΔLL|, in nats.

    Raises:
        InputError: Pairs or texts are not as described; one sentence is too short to have a loss.
        UnsupportedModelError: The network has no layers of this kind.

    Example:
        >>> class Words(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.blocks = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4)])
        ...         self.head = nn.Linear(4, 9)
        ...     def forward(self, input_ids, attention_mask):
        ...         return self.head(self.blocks[0](self.words(input_ids)).tanh())
        >>> pairs = SentencePairs.of_tokens([[1, 5], [1, 6]], [[2, 5], [2, 6]])
        >>> texts = [{"input_ids": torch.tensor([[1, 5, 7], [2, 6, 8]]), "attention_mask": torch.ones(2, 3)}]
        >>> influence_of_sentences(Words(), texts, pairs, progress=False).scores.shape
        torch.Size([2])
    """
    if not isinstance(pairs, SentencePairs):
        raise InputError(f"pairs is a {type(pairs).__name__}; expected SentencePairs")
    require_number("damping", damping, above=0)
    require_number("n_blocks", n_blocks, at_least=1, whole=True)
    require_number("batch_size", batch_size, at_least=1, whole=True)
    ScoredNetwork(model).check()  # layers are listened to
    generator, sentences = random_generator(random_state), sentences_of(texts, each=True)
    order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
    with preserved_random_state(), torch.inference_mode(False), torch.enable_grad():
        copied = copied_network(model).requires_grad_(False)
        every_module_in_eval_mode(copied)
        device = model_device(copied)
        batches = text_batches([sentences[row] for row in order], 2 * batch_size, device)

        def scores_of(inputs: dict[str, Tensor]) -> Tensor:
            return next_token_scores(copied, inputs["input_ids"], inputs["attention_mask"])

        late = LateBlocks(copied, edited_layers, n_blocks, lambda: scores_of(batches[0].inputs))
        problem = LinearisedPairs(list(late.layers))
        bar = progress_bar(description="influence of sentences", total=2 * len(batches), shown=progress, unit="batch")
        for batch in batches:
            with late.noted() as notes:
                scores = late.scores(lambda inputs=batch.inputs: scores_of(inputs), batch.kept)  # type: ignore[misc]
                problem.add_text(scores, predicting(batch.inputs["attention_mask"]), notes, generator)
            bar.update()
        differences = []
        for pair in pair_batches(pairs, batch_size, device):
            with late.noted() as notes:
                shared = shared_log_likelihoods(copied, pair.inputs)
                differences.append((shared[:, 0] - shared[:, 1]).detach().sum(1))
                problem.add_pairs(shared, pair.inputs["shared"].bool(), notes, generator)
        step = problem.published(damping)[0](-1.0)  # H⁻¹ ∇B
        found = []
        for batch in batches:
            with late.noted() as notes:
                scores = late.scores(lambda inputs=batch.inputs: scores_of(inputs), batch.kept)  # type: ignore[misc]
                own, counted = text_losses(scores, batch.inputs)
                slopes = torch.autograd.grad((own.sum(1) / counted.sum(1)).sum(), [notes[name][1] for name in step])
            step = {name: part.to(slope) for (name, part), slope in zip(step.items(), slopes, strict=True)}
            parts = [
                ((slope @ step[name]) * notes[name][0]).reshape(len(own), -1).sum(1)
                for name, slope in zip(step, slopes, strict=True)
            ]
            found.append(-torch.stack(parts).sum(0).cpu().double())
            bar.update()
        bar.close()
    influence = torch.cat(found)[torch.tensor(order, device="cpu").argsort()]
    return BiasInfluence(influence, float(torch.cat(differences).cpu().double().abs().mean()), "mean |ΔLL|")
