"""Machine unlearning of bias: make a network's decisions depend less on a flipped sensitive attribute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from fairtrim.arguments import random_generator, require_network, require_number
from fairtrim.data.batches import Batch, ForwardFunction, slice_samples
from fairtrim.data.sensitive_groups import SensitiveNames
from fairtrim.data.sentence_pairs import SentencePairs
from fairtrim.data.validation_set import ValidationSet
from fairtrim.devices import map_tensors, to_device
from fairtrim.errors import InputError
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Objective
from fairtrim.measures.scores import centred, label_losses
from fairtrim.network.scored_network import OutputTransform
from fairtrim.registry import Standing
from fairtrim.repair.candidates import Candidates
from fairtrim.repair.post_processor import PostProcessor
from fairtrim.repair.repaired_network import Repair
from fairtrim.repair.working_copy import WorkingCopy

from .conjugate_gradients import Solution
from .output_layer_problem import OutputLayerProblem, centred_rows, damped_cholesky
from .pair_judge import PairJudge
from .sentence_repair import SentenceRepair
from .sentence_unlearning import SentenceSettings, unlearn_sentences
from .unlearned import note_unlearned

__all__ = ["CounterfactualUnlearning"]


@dataclass(kw_only=True)
class CounterfactualUnlearning(PostProcessor):
    """Unlearn a dependence on a sensitive attribute from a few counterfactual pairs, without training data.

    The pairs are the validation people and the same people with the attribute flipped. Three forms:

    - ``form="consistency", layers="output"`` (ours): min over W of ½‖W − W₀‖²_H + ½ λ E‖f(x) − f(x̄)‖², one linear
      solve for each λ, H the closed-form Hessian of the output layer, f the scores less their mean, or the logit.
    - ``form="consistency", layers="all"`` (ours): fine-tuning with cross-entropy to the given network's own
      probabilities plus λ E‖f(x) − f(x̄)‖² / Var f. It needs no labels.
    - ``form="published"`` (fast model debiasing, FMD; Chen et al., NeurIPS 2023): θ + s H⁻¹ 1/n Σ [∇ℓ(z) − ∇ℓ(z̄)] on
      the output layer, z the bias-aligned side of a pair (which the network gets right more surely), z̄ the other. s = 1
      is the formula, with means over the pairs; the authors' code sums H over the training data and takes a step for
      each pair, which is shorter by far, and multiplies it. Other scales are a line search (ours).

    Every strength is a candidate. For the counterfactual measures the candidate with the least bias on the selection
    pairs wins among those whose performance is at most ``max_performance_loss`` below the given network's (and a
    standard error of the difference: one decision moves that of a hundred people by a point) and whose cross-entropy is
    at most ``max_cross_entropy_rise`` above it: shrinking all logits lowers the mean change of the
    probabilities, but is no repair. Where too few pairs hold any flip, the least change relative to the spread of the
    scores wins. The decision threshold stays the network's own. For a measure of ``BIAS_MEASURES`` candidate and
    threshold are selected by φ, as by the other post-processors.

    **Of a causal language model** the pairs are ``SentencePairs``, and ``repair(model, pairs, texts=loader)`` gives a
    ``SentenceRepair`` (ours; FMD's paper speaks of language models, and gives no formula). B is the mean of |ΔLL|, ΔLL
    the difference of the log-likelihoods of what both sentences share. ``layers="output"`` edits the layers that write
    what the last ``n_blocks`` blocks add (a head that is tied to the embeddings is left), linearised once, with K-FAC's
    H of the KL divergence on the texts: ``published`` is −s H⁻¹ ∇B, ``consistency`` the minimum of the KL + ½ λ E y² /
    (E y² before), y ΔLL and sums of its tokens' parts with random signs. ``layers="all"`` fine-tunes with the same
    loss, with ``n_blocks`` the last blocks only. The candidate with the least mean |ΔLL| on held-out pairs wins among
    those whose perplexity on held-out texts rises by at most ``max_perplexity_rise`` and whose |ΔLL| falls relative to
    the spread of LL as well.

    Args:
        measure: ``counterfactual_flips``, the share of decisions that change with the attribute;
            ``counterfactual_bias``, the mean change of the label's probability; or a measure that compares groups,
            which then needs sensitive features.
        epsilon: Bound on the measure; where it is not met the repair is flagged. None for 1 (no bound) for pairs, 0.05
            for measures that compare groups.
        margin: None for 0 for pairs, 0.01 for groups.
        counterfactual: Inputs -> the inputs with the attribute flipped, e.g. a ``ColumnFlip`` for tables or a generator
            for images and text; of an attribute of many values with ``other="random"``. None if the inputs of the data
            are pairs (x, x̄) themselves.
        form: ``consistency`` or ``published``.
        layers: ``output``, or ``all`` for ``consistency``.
        strengths: λ or s of the candidates; None for a path that suits the form.
        damping: Added to the Hessian's diagonal, in units of its mean; more if that is not enough. None for 0.1
            (consistency) or 0.01 (published), of sentences 1.
        epochs: For ``all``: passes over the edit pairs for each strength; None for 30, of sentences 3.
        learning_rate: For ``all``: of Adam; None for 1e-3, of sentences 3e-5, of their ``n_blocks`` 1e-4.
        training_batch_size: For ``all``: pairs a step; None for 64, of sentences 8.
        max_performance_loss: In the performance measure.
        max_cross_entropy_rise: In nats.
        edited_layers: Of sentences, for ``output``: names of linear layers to edit; None for the one that each of the
            last blocks calls last.
        n_blocks: Of sentences: how many of the last blocks are edited; None for 1, for ``all`` for the whole network.
        max_perplexity_rise: Of sentences: of held-out texts, as a share.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:, 2] = (x[:, 2] > 0).float()
        >>> from fairtrim import ColumnFlip
        >>> method = CounterfactualUnlearning(counterfactual=ColumnFlip(binary={2: (0.0, 1.0)}))
        >>> repair = method.repair(torch.nn.Linear(3, 2), [(x, (x[:, 0] > 0).long())], progress=False)
        >>> repair.bias <= repair.bias_before
        True
    """

    name: ClassVar[str] = "counterfactual-unlearning"
    does: ClassVar[str] = "lessens how much predictions change when an attribute is flipped, from a few pairs"
    when: ClassVar[str] = "where decisions must not change with an attribute, and there are pairs of the same person"
    source: ClassVar[str] = "FMD: Chen and others, NeurIPS 2023"
    link: ClassVar[str] = "https://arxiv.org/abs/2310.12560"
    standing: ClassVar[Standing] = "ours"
    remark: ClassVar[str] = "form 'published' as published"

    measure: str = "counterfactual_flips"
    epsilon: float | None = None  # type: ignore[assignment]
    margin: float | None = None  # type: ignore[assignment]
    counterfactual: Callable[[Any], Any] | None = None
    form: str = "consistency"
    layers: str = "output"
    strengths: Sequence[float] | None = None
    damping: float | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    training_batch_size: int | None = None
    max_performance_loss: float = 0.01
    max_cross_entropy_rise: float = 0.02
    edited_layers: Sequence[str] | None = None
    n_blocks: int | None = None
    max_perplexity_rise: float = 0.02

    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        if self.form not in ("consistency", "published") or self.layers not in ("output", "all"):
            raise InputError(
                f"form={self.form!r}, layers={self.layers!r}; expected form 'consistency' or 'published' and layers "
                "'output' or 'all'"
            )
        if self.form == "published" and self.layers == "all":
            raise InputError("form='published' edits the output layer; expected layers='output', or form='consistency'")
        if self.strengths is not None and (not len(self.strengths) or min(self.strengths) < 0):
            raise InputError(f"strengths={self.strengths}; expected at least one, none negative")
        chosen = [self.epochs, self.training_batch_size, self.learning_rate, self.damping]
        if not all(value is None or value > 0 for value in chosen):
            raise InputError(
                f"epochs={self.epochs}, training_batch_size={self.training_batch_size}, "
                f"learning_rate={self.learning_rate}, damping={self.damping}; expected positive numbers"
            )
        if self.n_blocks is not None:
            require_number("n_blocks", self.n_blocks, at_least=1, whole=True)
        require_number("max_perplexity_rise", self.max_perplexity_rise, at_least=0)
        if not (self.max_performance_loss >= 0 and self.max_cross_entropy_rise >= 0):
            raise InputError("max_performance_loss or max_cross_entropy_rise is negative; expected at least 0")
        if self.layers == "output":
            self._refuse_idle(["epochs", "learning_rate", "training_batch_size"], "expected layers='all' with it")
        else:
            self._refuse_idle(["damping", "edited_layers"], "expected layers='output' with it")
        if self._compares_groups():
            limits = ["max_performance_loss", "max_cross_entropy_rise"]
            self._refuse_idle(limits, f"measure={self.measure!r} selects by φ; they belong to counterfactual measures")
        else:
            idle = ["privileged", "confidence", "min_people"]
            self._refuse_idle(idle, f"measure={self.measure!r} compares no groups")

    @overload
    def repair(
        self,
        model: nn.Module,
        loader: SentencePairs,
        *,
        texts: Iterable[Any],
        selection_loader: SentencePairs | None = None,
        inplace: bool = False,
        progress: bool = True,
    ) -> SentenceRepair: ...

    @overload
    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any] | ValidationSet,
        *,
        selection_loader: Iterable[Any] | ValidationSet | None = None,
        sensitive_features: Any = None,
        selection_sensitive_features: Any = None,
        sensitive_names: SensitiveNames | None = None,
        forward_fn: ForwardFunction | None = None,
        output_transform: OutputTransform | None = None,
        inplace: bool = False,
        progress: bool = True,
    ) -> Repair: ...

    def repair(self, model: nn.Module, loader: Any, *, texts: Any = None, **options: Any) -> Any:
        """Repair a trained network; see ``PostProcessor.repair``, and for pairs of sentences below.

        Args:
            model: The trained network; of pairs of sentences a causal language model, called with ``input_ids`` and
                ``attention_mask``.
            loader: Validation people, or ``SentencePairs``.
            texts: With ``SentencePairs``: a loader of ``{"input_ids", "attention_mask"}``, (N, T) each, alone or first
                in a tuple. On half of the sentences the model is kept as it is, of the other half the perplexity is.
            options: Of ``PostProcessor.repair``; of pairs of sentences ``selection_loader`` (other ``SentencePairs``),
                ``inplace`` and ``progress``.

        Returns:
            The repair; a ``SentenceRepair`` of pairs of sentences.

        Raises:
            InputError: The data or settings don't allow it. The network is as before.
            UnsupportedModelError: The network has no layers that can be edited. The network is as before.
        """
        if isinstance(loader, SentencePairs):
            return self._repair_sentences(model, loader, texts, **options)
        if texts is not None:
            raise InputError(
                f"texts= with a {type(loader).__name__}; expected it with SentencePairs only, to keep a language model"
            )
        idle = ["edited_layers", "n_blocks", "max_perplexity_rise"]
        self._refuse_idle(idle, "expected SentencePairs with it")
        return super().repair(model, loader, **options)

    def _repair_sentences(
        self,
        model: nn.Module,
        pairs: SentencePairs,
        texts: Any,
        *,
        selection_loader: Any = None,
        inplace: bool = False,
        progress: bool = True,
        **others: Any,
    ) -> SentenceRepair:
        self.check()
        require_network("model", model)
        if others:
            raise InputError(
                f"{sorted(others)} with SentencePairs; expected a causal language model as it is, and texts="
            )
        idle = [
            "measure",
            "epsilon",
            "margin",
            "performance",
            "privileged",
            "confidence",
            "min_people",
            "counterfactual",
        ]
        idle += ["max_performance_loss", "max_cross_entropy_rise"]
        self._refuse_idle(idle, "of pairs of sentences B is the mean |ΔLL|, bounded by max_perplexity_rise")
        if selection_loader is not None:
            if not isinstance(selection_loader, SentencePairs):
                raise InputError(f"selection_loader is a {type(selection_loader).__name__}; expected SentencePairs")
            self._refuse_idle(
                ["selection_share"], "selection_loader= says which pairs select; leave one of the two out"
            )
        batch_size = next(entry.default for entry in fields(self) if entry.name == "batch_size")
        settings = SentenceSettings(
            form=self.form,
            layers=self.layers,
            edited_layers=self.edited_layers,
            n_blocks=self.n_blocks,
            strengths=self.strengths,
            damping=1.0 if self.damping is None else self.damping,
            epochs=3 if self.epochs is None else self.epochs,
            learning_rate=self.learning_rate or (3e-5 if self.n_blocks is None else 1e-4),
            training_batch_size=8 if self.training_batch_size is None else self.training_batch_size,
            selection_share=0.3 if self.selection_share is None else self.selection_share,
            max_perplexity_rise=self.max_perplexity_rise,
            max_seconds=self.max_seconds,
            patience=self.patience,
            batch_size=16 if self.batch_size == batch_size else self.batch_size,
        )
        return unlearn_sentences(
            model,
            pairs,
            texts,
            settings,
            random_generator(self.random_state),
            selection=selection_loader,
            inplace=inplace,
            progress=progress,
        )

    def objective(self) -> Objective:
        """The objective that these settings describe."""
        epsilon, margin = (0.05, 0.01) if self._compares_groups() else (1.0, 0.0)
        epsilon = epsilon if self.epsilon is None else self.epsilon
        margin = min(margin, epsilon / 2) if self.margin is None else self.margin
        confidence = self.confidence if self._compares_groups() else None
        return Objective(self.measure, epsilon, margin, self.performance, confidence)

    def _compares_groups(self) -> bool:
        return self.measure not in COUNTERFACTUAL_MEASURES

    def _prepared(self, people: ValidationSet) -> ValidationSet:
        if people.counterfactual is not None:
            return people
        if self.counterfactual is not None:
            return replace(people, counterfactual=self.counterfactual(map_tensors(people.inputs, torch.clone)))
        if not isinstance(people.inputs, tuple | list) or len(people.inputs) != 2:
            raise InputError(
                f"the inputs are a {type(people.inputs).__name__} and counterfactual is None; expected pairs (inputs, "
                "flipped inputs), or counterfactual=, a function that flips the attribute, e.g. ColumnFlip"
            )
        return replace(people, inputs=people.inputs[0], counterfactual=people.inputs[1])

    def _set_up(self, working: WorkingCopy, candidates: Candidates) -> None:
        if self._compares_groups():
            return
        judge = PairJudge(
            working,
            candidates,
            performance=self.performance,
            min_people=self.min_people,
            max_performance_loss=self.max_performance_loss,
            max_cross_entropy_rise=self.max_cross_entropy_rise,
        )
        candidates.judge = judge
        candidates.performance_floor = 0.0

    def _note(self, repair: Repair) -> None:
        if repair.chosen.candidate:
            note_unlearned(repair.model)

    def _path(self) -> tuple[float, ...]:
        if self.strengths is not None:
            return tuple(self.strengths)
        if self.form == "published":
            return (1.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 2.0, 5.0, 10.0)
        if self.layers == "output":
            return (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
        return (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        for whose, side in (("people", working.people), ("counterfactuals", working.people.flipped())):
            with torch.no_grad():
                finite = bool(torch.isfinite(working.scores(side)).all())
            if not finite:  # the selection pairs were looked at before
                raise InputError(f"scores of the {whose} are not finite; expected finite ones: look at their inputs")
        if self.layers == "all":
            self._fine_tune(working, candidates)
        else:
            self._solve(working, candidates)
        chosen = candidates.chosen
        if chosen is not None and chosen.candidate == 0:
            what = "the network is returned as it was given"
            if chosen.margin_threshold:
                what = "nothing was unlearned, only the threshold was moved"
            candidates.flags.append(f"{what}: {self._why_not(candidates)}")
        if isinstance(candidates.judge, PairJudge) and candidates.judge.blind:
            candidates.flags.append(
                f"none of the {len(candidates.selection)} selection pairs changes its decision with the attribute, so "
                "that flips can't choose: the candidate whose scores change least did; take more pairs to see flips"
            )

    def _why_not(self, candidates: Candidates) -> str:
        """Why no candidate is better than the network as it was given."""
        given, *others = candidates.history
        judge = candidates.judge
        n_judged = sum(not math.isnan(entry["bias"]) for entry in others)
        reasons = iter(judge.reasons[len(judge.reasons) - n_judged :] if isinstance(judge, PairJudge) else ())
        refused: dict[str, list[float]] = {}
        for entry in others:
            if math.isnan(entry["bias"]):
                why = "scores that are not finite"
            elif isinstance(judge, PairJudge):
                why = next(reasons) or f"a {self.measure} of no less than {given['bias']:.4g}"
            else:
                why = "no better figures by the objective"
            refused.setdefault(why, []).append(entry.get("strength", math.nan))
        if not refused:
            return "no other candidate was tried"
        return (
            "the others had "
            + "; ".join(
                f"{why} (strength {', '.join(f'{strength:g}' for strength in which)})" for why, which in refused.items()
            )
            + (judge.beyond_limits() if isinstance(judge, PairJudge) else "")
        )

    def _solve(self, working: WorkingCopy, candidates: Candidates) -> None:
        people = working.people
        given = working.head.theta()
        single = len(given) == 1
        sides = [working.all_features(side) for side in (people, people.flipped())]
        here, there = (
            OutputLayerProblem.of(h, people.target, single_logit=single, weight=people.weight) for h in sides
        )
        if self.form == "consistency":
            moved = self._consistent(here, there, given)
        else:
            moved = self._published(here, there, given)
        path = self._path()
        with working.bar(len(path), "counterfactual unlearning") as bar:
            for strength in path:
                if candidates.exhausted():
                    break
                solution = moved(strength)
                if (why := solution.why_rough()) is not None:
                    candidates.flags.append(
                        f"the solution of strength {strength:g} is rough: {why}; more damping helps"
                    )
                working.head.write(solution.value)
                candidates.offer(strength=strength)
                bar.update()

    def _consistent(
        self, here: OutputLayerProblem, there: OutputLayerProblem, given: Tensor
    ) -> Callable[[float], Solution]:
        """(H + λ A) θ = H θ₀, A = C ⊗ E (h − h̄)(h − h̄)ᵀ, C the centring of scores; the strength is λ."""
        change = here.features - there.features
        share = (
            torch.full((len(change),), 1.0, dtype=torch.float64, device="cpu") if here.weight is None else here.weight
        )
        moment = (change * (share / share.sum())[:, None]).T @ change
        damping, n_outputs = 0.1 if self.damping is None else self.damping, len(given)
        if not here.is_small(given):
            solved, gap = here.solver(given, damping=damping, apart=moment), centred_rows(given) @ moment

            def stepped(strength: float) -> Solution:
                step = solved(strength * gap, strength)
                return step._replace(value=given - step.value)

            return stepped
        hessian = here.hessian(given)
        _, added = damped_cholesky(hessian, damping=damping)
        hessian = hessian + added * torch.eye(len(hessian), dtype=hessian.dtype, device="cpu")
        centring = torch.eye(n_outputs, dtype=torch.float64, device="cpu")
        if n_outputs > 1:
            centring = centring - 1 / n_outputs
        penalty = torch.kron(centring, moment)

        def moved(strength: float) -> Solution:
            right = hessian @ given.reshape(-1)
            solved: Tensor = torch.linalg.solve(hessian + strength * penalty, right)
            return Solution(solved.reshape(given.shape), 0.0, 0)

        return moved

    def _published(
        self, here: OutputLayerProblem, there: OutputLayerProblem, given: Tensor
    ) -> Callable[[float], Solution]:
        """θ + s H⁻¹ 1/n Σ [∇ℓ(z) − ∇ℓ(z̄)]: z the bias-aligned side of a pair, z̄ the other; the strength is s."""
        losses = [side.sample_losses(given) for side in (here, there)]
        aligned = (losses[0] <= losses[1])[:, None]  # the side that the network gets right more surely
        z, z_bar = (
            replace(here, features=torch.where(aligned, first, second))
            for first, second in ((here.features, there.features), (there.features, here.features))
        )
        both = replace(
            here,
            features=torch.cat([here.features, there.features]),
            target=torch.cat([here.target, here.target]),
            weight=None if here.weight is None else torch.cat([here.weight, here.weight]),
        )
        change = z.gradient(given) - z_bar.gradient(given)
        step = both.solved(given, change, damping=0.01 if self.damping is None else self.damping)
        return lambda strength: step._replace(value=given + strength * step.value)

    def _fine_tune(self, working: WorkingCopy, candidates: Candidates) -> None:
        people, flipped = working.people, working.people.flipped()
        with torch.no_grad():
            own = working.scores(people)
        mass = people.mass / people.mass.sum()
        spread = (mass @ (centred(own) - mass @ centred(own)).square()).mean().clamp(min=1e-12)
        known = torch.cat([own, people.mass[:, None]], 1)  # beside the inputs the one copy of a step to the device
        epochs = 30 if self.epochs is None else self.epochs
        training = working.training(
            self._path(),
            epochs,
            1e-3 if self.learning_rate is None else self.learning_rate,
            "counterfactual unlearning",
        )
        for strength, epoch, step in training:
            if candidates.exhausted():
                return
            order = torch.randperm(len(people), generator=working.generator, device="cpu")
            for rows in torch.split(order, self.training_batch_size or 64):
                inputs = (to_device(slice_samples(side.inputs, rows), working.device) for side in (people, flipped))
                here, there = (working.network.scores(Batch(side, people.target[rows], None, 0)) for side in inputs)
                own_here, share = to_device(known[rows].to(here.dtype), here.device).tensor_split([own.shape[1]], 1)
                own_here, share = own_here.contiguous(), share.squeeze(1).contiguous()
                wanted = own_here[:, 0].sigmoid() if here.shape[1] == 1 else own_here.softmax(1)
                losses = label_losses(here, wanted)
                share = share / share.sum().clamp(min=1e-12)
                gap = share @ (centred(here) - centred(there)).square().mean(1)
                step(share @ losses + strength * gap / spread.to(here.dtype))
            if epoch == epochs - 1:
                candidates.offer(strength=strength)
