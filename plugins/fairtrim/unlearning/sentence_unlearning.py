"""Bias between sentences that differ in whom they name, unlearned from a causal language model.

Ours: the paper on fast model debiasing speaks of experiments with language models, and gives no formula for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from fairtrim.data.sentence_pairs import SentencePairs
from fairtrim.devices import model_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.network.copied_network import copied_network
from fairtrim.network.late_blocks import LateBlocks, last_blocks, late_parameters
from fairtrim.network.pair_differences import next_token_scores, shared_log_likelihoods
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import every_module_in_eval_mode, preserved_model, preserved_random_state
from fairtrim.progress import progress_bar

from .linearised_pairs import LinearisedPairs
from .sentence_batches import SentenceBatch, pair_batches, predicting, sentences_of, text_batches, text_losses
from .sentence_repair import SentenceFigures, SentenceRepair
from .unlearned import note_unlearned

__all__ = ["SentenceSettings", "unlearn_sentences"]

_CONSISTENCY = (0.03, 0.3, 3.0, 30.0, 100.0)
_ALL_LAYERS = (0.3, 1.0)
_LATE_BLOCKS = (1.0,)
_STEPS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
"""Of the published form, in units of the step that would bring B to 0 if nothing bent."""
_SIGNS = 8
"""Sums of differences over the tokens of a pair that are pushed to 0: the plain one, and with random signs."""


class SentenceSettings(NamedTuple):
    """What ``CounterfactualUnlearning`` says of sentences."""

    form: str
    layers: str
    edited_layers: Sequence[str] | None
    n_blocks: int | None
    strengths: Sequence[float] | None
    damping: float
    epochs: int
    learning_rate: float
    training_batch_size: int
    selection_share: float
    max_perplexity_rise: float
    max_seconds: float | None
    patience: int | None
    batch_size: int


class _Sentences:
    """A copy of a language model, with pairs and texts to edit on and others to judge by."""

    def __init__(
        self,
        model: nn.Module,
        pairs: tuple[SentencePairs, SentencePairs],
        texts: tuple[list[Tensor], list[Tensor]],
        settings: SentenceSettings,
        generator: Generator,
    ) -> None:
        self.settings, self.generator = settings, generator
        ScoredNetwork(model).check()  # layers are listened to
        self.model = copied_network(model)
        every_module_in_eval_mode(self.model)
        self.flags = [parameter.requires_grad for parameter in self.model.parameters()]
        device = model_device(self.model)
        self.device = device
        size = settings.batch_size
        self.pairs = tuple(pair_batches(part, size, device) for part in pairs)
        self.texts = tuple(text_batches(part, 2 * size, device) for part in texts)
        inputs = self.texts[0][0].inputs

        def run() -> Tensor:
            return next_token_scores(self.model, inputs["input_ids"], inputs["attention_mask"])

        self.late: LateBlocks | None = None
        self.edited: tuple[str, ...] = ()
        named = dict(self.model.named_parameters())
        if settings.layers == "all" and settings.n_blocks is not None:
            named = late_parameters(self.model, settings.n_blocks)
            self.edited = tuple(name for name, _ in last_blocks(self.model, settings.n_blocks))
        self.trained = [parameter for parameter in named.values() if parameter.requires_grad]
        if settings.layers == "output" or self.edited:  # no graph for the others
            self.model.requires_grad_(False)
            self.late = LateBlocks(self.model, settings.edited_layers, settings.n_blocks or 1, run)
        if self.late is not None and settings.layers == "output":
            self.edited = tuple(self.late.layers)
            self.views = {name: self.late.weight(name) for name in self.late.layers}
        else:
            self.views = {name: parameter.detach() for name, parameter in named.items()}
            for parameter in self.trained:
                parameter.requires_grad_(True)
        self.given = {name: view.clone() for name, view in self.views.items()}

    def write(self, weights: dict[str, Tensor]) -> None:
        """Set the weights that are edited."""
        for name, view in self.views.items():
            view.copy_(weights[name])

    def shared(self, batch: SentenceBatch) -> Tensor:
        """Log-likelihoods of shared tokens, (N, 2, T)."""
        return self._run(batch, shared_log_likelihoods_of)

    def scores(self, batch: SentenceBatch) -> Tensor:
        """Scores at each token of texts, (N, T, K)."""
        return self._run(batch, lambda scores, inputs: scores)

    def _run(self, batch: SentenceBatch, figure: Any) -> Tensor:
        ids, mask = (batch.inputs[name].flatten(0, -2) for name in ("input_ids", "attention_mask"))

        def run() -> Tensor:
            return next_token_scores(self.model, ids, mask)

        scores = run() if self.late is None else self.late.scores(run, batch.kept)
        found: Tensor = figure(scores, batch.inputs)
        return found

    def figures(self) -> SentenceFigures:
        """Of the held-out pairs and texts."""
        with torch.no_grad():
            # one wait for each batch
            sums = torch.cat([self.shared(batch).cpu().double().sum(2) for batch in self.pairs[1]])
            total, number = 0.0, 0
            for batch in self.texts[1]:
                losses, counted = torch.stack(text_losses(self.scores(batch), batch.inputs)).cpu()
                total, number = total + float(losses.double().sum()), number + int(counted.sum())
        return SentenceFigures.of(sums, math.exp(min(total / number, 700.0)))


def shared_log_likelihoods_of(scores: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """``shared_log_likelihoods`` of scores that are there, (N, 2, T)."""
    return shared_log_likelihoods(lambda input_ids, attention_mask: scores, inputs)  # type: ignore[arg-type]


def unlearn_sentences(
    model: nn.Module,
    pairs: SentencePairs,
    texts: Iterable[Any] | None,
    settings: SentenceSettings,
    generator: Generator,
    *,
    selection: SentencePairs | None = None,
    inplace: bool = False,
    progress: bool = True,
) -> SentenceRepair:
    """What ``CounterfactualUnlearning.repair`` does with pairs of sentences; see there.

    Args:
        model: The causal language model.
        pairs: Pairs to edit on, and to select with if no others do.
        texts: Texts on which the model is kept as it is.
        settings: How.
        generator: Source of randomness.
        selection: Pairs that select.
        inplace: Write the repair into the model, at the very end.
        progress: Show a progress bar.

    Returns:
        The repair.

    Raises:
        InputError: Pairs or texts are too few, or what the model says of them is not finite.
        UnsupportedModelError: The network has no layers to edit.
    """
    if selection is None and len(pairs) < 2:
        raise InputError("there is one pair; expected at least two, one to edit on and one to select with")
    sentences = sentences_of(texts)
    order, rows = (torch.randperm(len(part), generator=generator, device="cpu") for part in (pairs, sentences))
    n_selected = (
        0 if selection is not None else min(len(pairs) - 1, max(1, round(settings.selection_share * len(pairs))))
    )
    edit_rows, selection_rows = order[n_selected:], order[:n_selected]
    parts = pairs.take(edit_rows), pairs.take(selection_rows) if selection is None else selection
    half = len(sentences) // 2
    split = [sentences[int(row)] for row in rows[:half]], [sentences[int(row)] for row in rows[half:]]
    with preserved_random_state(), preserved_model(model), torch.inference_mode(False):
        working = _Sentences(model, parts, split, settings, generator)
        search = _Search(working, progress)
        if settings.layers == "all":
            _fine_tune(working, search, model)
        else:
            _solve(working, search)
        search.close()
    chosen, before, after = search.chosen, search.entries[0], search.entries[search.chosen]
    working.write(search.best)
    if not chosen:
        search.flags.insert(0, f"the network is returned as it was given: {search.why_not()}")
    elif not after.falls_beyond_chance(before):
        search.flags.append(
            f"the fall of the mean |ΔLL| is within its error on {len(after.differences)} held-out pairs; take more "
            "pairs to tell it from chance"
        )
    repaired = working.model
    for parameter, flag in zip(repaired.parameters(), working.flags, strict=True):
        parameter.requires_grad_(flag)
        parameter.grad = None
    for module, own in zip(repaired.modules(), model.modules(), strict=True):
        module.training = own.training
    if inplace:
        with torch.no_grad():
            for own_parameter, parameter in zip(model.parameters(), repaired.parameters(), strict=True):
                if not torch.equal(own_parameter, parameter):
                    own_parameter.copy_(parameter)
        repaired = model
    if chosen:
        note_unlearned(repaired)
    return SentenceRepair(
        model=repaired,
        candidate=chosen,
        before=before,
        after=after,
        edited_layers=working.edited,
        flags=tuple(search.flags),
        history=tuple(search.history),
        edit_rows=edit_rows,
        selection_rows=selection_rows,
        n_texts=(len(split[0]), len(split[1])),
    )


class _Search:
    """Judges candidates on held-out pairs and texts, and keeps the best."""

    def __init__(self, working: _Sentences, progress: bool) -> None:
        self.working, self.flags = working, list[str]()
        self.began, self.stale = time.monotonic(), 0
        self.bar = progress_bar(description="unlearning from sentences", shown=progress, unit="candidate")
        given = working.figures()
        if not given.is_finite():
            raise InputError(
                "log-likelihoods of the pairs or the texts are not finite; the network itself gives them: look at its "
                "weights and the tokens"
            )
        if not given.bias:
            raise InputError(
                "the held-out pairs have the same log-likelihood on both sides, so that there is nothing to unlearn; "
                "expected pairs whose shared tokens come after what differs"
            )
        self.entries, self.chosen, self.best = [given], 0, working.given
        self.history: list[dict[str, Any]] = [{"candidate": 0, "step": "as given", **given.told()}]
        self.reasons: list[str] = []

    @property
    def bound(self) -> float:
        """The largest perplexity that is allowed."""
        return self.entries[0].perplexity * (1 + self.working.settings.max_perplexity_rise)

    def close(self) -> None:
        self.bar.close()

    def over(self) -> bool:
        """Whether time or patience is spent."""
        settings = self.working.settings
        spent = settings.max_seconds is not None and time.monotonic() - self.began > settings.max_seconds
        if spent:
            self.flags.append(f"stopped after {len(self.entries)} candidates by max_seconds={settings.max_seconds:g}")
        return spent or (settings.patience is not None and self.stale >= settings.patience)

    def offer(self, strength: float, **details: Any) -> SentenceFigures:
        """Judge the copy as it is."""
        found, given = self.working.figures(), self.entries[0]
        number, reasons = len(self.entries), []
        if not found.is_finite():
            reasons.append("figures that are not finite")
        else:
            if found.perplexity > self.bound:
                reasons.append(f"a perplexity that rose by more than {self.working.settings.max_perplexity_rise:.1%}")
            if not found.bias < given.bias:
                reasons.append(f"a mean |ΔLL| of no less than {given.bias:.3f}")
            elif not found.relative < given.relative:
                reasons.append("a |ΔLL| relative to the spread of LL that is no smaller")
        self.entries.append(found)
        self.history.append({"candidate": number, "strength": strength, **details, **found.told()})
        self.reasons.append(" and ".join(reasons))
        self.stale += 1
        if not reasons and found.bias < self.entries[self.chosen].bias:
            self.chosen, self.stale = number, 0
            self.best = {name: weight.clone() for name, weight in self.working.views.items()}
        self.bar.update()
        return found

    def why_not(self) -> str:
        if not self.reasons:
            return "no other candidate was tried"
        told: dict[str, list[str]] = {}
        for why, entry in zip(self.reasons, self.history[1:], strict=True):
            told.setdefault(why, []).append(f"{entry['strength']:g}")
        return "the others had " + "; ".join(f"{why} (strength {', '.join(s)})" for why, s in told.items())


def _solve(working: _Sentences, search: _Search) -> None:
    """Both forms on some late layers, by one linearisation of the pairs."""
    settings, late = working.settings, working.late
    assert late is not None
    problem = LinearisedPairs(list(late.layers))
    for batch in working.texts[0]:
        with late.noted() as notes:
            scores = working.scores(batch)
            problem.add_text(scores, predicting(batch.inputs["attention_mask"]), notes, working.generator)
    n_signs = _SIGNS if settings.form == "consistency" else 1
    for batch in working.pairs[0]:
        with late.noted() as notes:
            problem.add_pairs(working.shared(batch), batch.inputs["shared"].bool(), notes, working.generator, n_signs)
    path: Sequence[float] = _CONSISTENCY
    if settings.form == "consistency":
        solve = problem.consistent(settings.damping)
    else:
        solve, whole = problem.published(settings.damping)
        path = [share * whole for share in _STEPS]
    beyond = 0
    for strength in path if settings.strengths is None else settings.strengths:
        if search.over() or beyond > 1:
            return
        step = solve(strength)
        working.write({name: weight + step[name].to(weight) for name, weight in working.given.items()})
        found = search.offer(strength)
        if settings.strengths is None:  # the path goes up: nothing behind two that cost too much will do
            beyond = 0 if found.perplexity <= search.bound else beyond + 1


def _fine_tune(working: _Sentences, search: _Search, given: nn.Module) -> None:
    """All layers, or those of the last blocks: KL to the given model on texts + λ E Σ (Δℓ)² / its given value."""
    settings, size = working.settings, working.settings.training_batch_size
    if not working.trained:
        raise UnsupportedModelError("every parameter is frozen; expected some with requires_grad=True to edit")
    with torch.no_grad():
        squares = [_squares(working.shared(batch), batch) for batch in working.pairs[0]]
    scale = torch.cat(squares).mean().clamp(min=1e-12)
    batches = [part for batch in working.pairs[0] for part in batch.split(size)]
    texts = [part for batch in working.texts[0] for part in batch.split(2 * size)]
    path = _ALL_LAYERS if settings.n_blocks is None else _LATE_BLOCKS
    for strength in path if settings.strengths is None else settings.strengths:
        working.write(working.given)
        optimizer = torch.optim.Adam(working.trained, lr=settings.learning_rate)
        for epoch in range(settings.epochs):
            text_order = torch.randperm(len(texts), generator=working.generator, device="cpu").tolist()
            for step, row in enumerate(
                torch.randperm(len(batches), generator=working.generator, device="cpu").tolist()
            ):
                batch, text = batches[row], texts[text_order[step % len(texts)]]
                with torch.no_grad():
                    own = next_token_scores(given, **text.inputs)
                with torch.enable_grad():
                    penalty = _squares(working.shared(batch), batch).mean() / scale
                    loss = _divergence(working.scores(text), own, text) + strength * penalty
                    gradients = torch.autograd.grad(loss, working.trained, allow_unused=True)
                for parameter, gradient in zip(working.trained, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            search.offer(strength, epoch=epoch)
            if search.over():
                return


def _divergence(scores: Tensor, own: Tensor, text: SentenceBatch) -> Tensor:
    """Mean over tokens of KL(p_given ‖ p), p the distribution of the next token."""
    now, before = (part.flatten(0, 1)[text.predicting].float().log_softmax(1) for part in (scores, own))
    return nn.functional.kl_div(now, before, reduction="batchmean", log_target=True)


def _squares(shared: Tensor, batch: SentenceBatch) -> Tensor:
    """Σ over the shared tokens of a pair of (Δℓ)², (N,), of log-likelihoods (N, 2, T)."""
    places, sizes = batch.aligned
    one, other = shared.flatten()[places]
    return torch.stack([part.sum() for part in (one - other).square().split(sizes)])
