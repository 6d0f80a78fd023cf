"""Differences of log-likelihoods, linear in an edit of some layers, and what the edit costs on texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from fairtrim.devices import to_device
from fairtrim.errors import InputError, UnsupportedModelError

__all__ = ["LinearisedPairs"]

Notes = dict[str, tuple[Tensor, Tensor]]
"""Inputs of each layer, (..., D), and what the gradient by its outputs, (..., O), is taken by."""

Edits = Callable[[float], dict[str, Tensor]]
"""Strength -> what to add to the weight (O, D) of each layer."""


class LinearisedPairs:
    """Pairs of sentences and texts, to first and to second order in an edit δ of the weights of some linear layers.

    Of each of N pairs y_n = ΔLL and its gradient J_n, kept as inputs and output gradients of each layer, are those of
    the network as it is; with ``n_signs`` more than one there are further rows y, sums of the same differences of
    shared tokens with random signs: the mean of their squares is Σ (Δℓ)² over tokens, which cancels nothing.
    What an edit costs, the mean KL of a token's distribution, is ½ δᵀHδ, H the Gauss-Newton matrix in K-FAC's form
    (Martens and Grosse, 2015): for each layer G ⊗ A, A = E aaᵀ of its inputs on texts, G = E ggᵀ of the gradients by
    its outputs, the next token drawn from the model's own distribution; each with ``damping`` times its mean diagonal.

    Args:
        layers: Names of the layers.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = list(layers)
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._n_tokens = 0
        self._rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in self.layers}
        self._values: list[Tensor] = []

    def add_text(self, scores: Tensor, counted: Tensor, notes: Notes, generator: Generator) -> None:
        """Texts of one batch, for A and G.

        Args:
            scores: f at each token, (N, T, K), computed while ``notes`` were taken.
            counted: Where a next token is to be predicted, (N, T) bool.
            notes: Of the layers.
            generator: Draws the next tokens.
        """
        places = counted.flatten().nonzero().squeeze(1)  # the one wait of a batch
        log_probabilities = scores.flatten(0, 1)[places].to(torch.promote_types(scores.dtype, torch.float32))
        log_probabilities = log_probabilities.log_softmax(1)
        likely = log_probabilities.detach().exp()
        if torch.are_deterministic_algorithms_enabled():  # CUDA's cumsum is not, and refuses
            likely = likely.cpu()
        drawn = torch.rand(len(places), 1, generator=generator, dtype=torch.float32, device="cpu")
        drawn = to_device(drawn.to(likely.dtype), likely.device)
        token = (likely.cumsum(1) < drawn).sum(1).clamp(max=scores.shape[2] - 1).to(scores.device)
        total = log_probabilities.gather(1, token[:, None]).sum()
        gradients = torch.autograd.grad(total, [notes[name][1] for name in self.layers])
        self._n_tokens += len(places)
        for name, gradient in zip(self.layers, gradients, strict=True):
            inputs, gradient = _rows(name, notes[name][0], counted), _rows(name, gradient, counted)
            inputs = inputs[places]
            new = inputs.T @ inputs, gradient.T @ gradient
            old = self._moments.get(name)
            self._moments[name] = new if old is None else (old[0] + new[0], old[1] + new[1])

    def add_pairs(self, shared: Tensor, mask: Tensor, notes: Notes, generator: Generator, n_signs: int = 1) -> None:
        """Pairs of one batch, for y and J.

        Args:
            shared: Log-likelihoods of shared tokens, (N, 2, T), computed while ``notes`` were taken.
            mask: Which tokens are shared, (N, 2, T) bool.
            notes: Of the layers.
            generator: Draws the signs.
            n_signs: Rows y for each pair, the first ΔLL itself.
        """
        n_pairs, length = len(shared), shared.shape[2]
        place = (mask.cumsum(2) - 1).clamp(min=0)  # the same on both sides for a token that they share
        side = (1 - 2 * torch.arange(2, device=shared.device)).to(shared)[:, None]  # 1 and −1
        drawn = torch.randint(2, (n_signs - 1, n_pairs, length), generator=generator, device="cpu")
        every = torch.cat([torch.ones(1, n_pairs, length, device="cpu"), 2.0 * drawn - 1.0])
        every = to_device(every.to(shared.dtype), shared.device)
        values, slopes = [], []
        for number, sign in enumerate(every):
            signs = sign[:, None].expand(-1, 2, -1).gather(2, place)
            sums = (shared * mask * signs * side).sum((1, 2))
            values.append(sums.detach())
            outputs = [notes[name][1] for name in self.layers]
            slopes.append(torch.autograd.grad(sums.sum(), outputs, retain_graph=number < n_signs - 1))
        first = sum(len(value) for value in self._values[:: n_signs or 1])
        self._values += values
        counted = mask.flatten(0, 1)
        rows = [
            (
                _rows(name, notes[name][0], counted),
                torch.stack([_rows(name, slope[place_of_layer], counted) for slope in slopes]),
            )
            for place_of_layer, name in enumerate(self.layers)
        ]
        used = torch.stack([gradients.abs().sum((0, 2)) > 0 for _, gradients in rows]).cpu()  # the one wait of a batch
        every_used = [own.nonzero().squeeze(1) for own in used]
        of_layers = torch.split(to_device(torch.cat(every_used), shared.device), [len(own) for own in every_used])
        for name, (inputs, gradients), own in zip(self.layers, rows, of_layers, strict=True):
            owner = first + own.div(2 * length, rounding_mode="floor")
            self._rows[name].append((inputs[own], gradients[:, own], owner))
        self._n_signs = n_signs

    def consistent(self, damping: float) -> Edits:
        """Argmin over δ of ½ δᵀHδ + ½ λ E(y + J δ)² / E y², in the dual: as many unknowns as rows y.

        Args:
            damping: Of both factors of H, in units of their mean diagonal.

        Returns:
            λ -> δ.
        """
        solved = self._solved(damping)
        value = self._stacked_values()
        gram = sum(_gram(solved[name], len(value) // self._n_signs, self._n_signs) for name in self.layers)
        assert isinstance(gram, Tensor)
        scale = float(value.square().mean()) * len(value)

        def edit(strength: float) -> dict[str, Tensor]:
            shift = torch.eye(len(value), dtype=torch.float64, device="cpu") * scale
            multiplier = strength * torch.linalg.solve(strength * gram + shift, value)
            return {name: -solved[name].edit(multiplier.view(self._n_signs, -1)) for name in self.layers}

        return edit

    def published(self, damping: float) -> tuple[Edits, float]:
        """δ = −s H⁻¹ ∇B, B = E |ΔLL|: fast model debiasing's step, on what a language model says of pairs.

        Args:
            damping: As of ``consistent``.

        Returns:
            s -> δ, and the s at which B would be 0 if it were linear.
        """
        solved = self._solved(damping)
        value = self._stacked_values().view(self._n_signs, -1)
        multiplier = torch.zeros_like(value)
        multiplier[0] = value[0].sign() / value.shape[1]
        whole = {name: solved[name].edit(multiplier) for name in self.layers}
        descent = sum(float((solved[name].slope(multiplier) * whole[name]).sum()) for name in self.layers)
        if not descent > 0:
            raise InputError(
                "no edit of the layers moves what the pairs share; expected edited_layers= before the head"
            )
        return lambda strength: {name: -strength * step for name, step in whole.items()}, float(
            value[0].abs().mean()
        ) / descent

    def _stacked_values(self) -> Tensor:
        """Y by sign, then by pair, (n_signs · N,)."""
        values = [torch.cat(self._values[number :: self._n_signs]) for number in range(self._n_signs)]
        return torch.cat(values).cpu().double()

    def _solved(self, damping: float) -> dict[str, _Layer]:
        found = {}
        for name in self.layers:
            inverses = [
                _damped_inverse(moment.cpu().double() / self._n_tokens, damping) for moment in self._moments[name]
            ]
            inputs, gradients, owner = (
                torch.cat(parts, dim) for parts, dim in zip(zip(*self._rows[name], strict=True), (0, 1, 0), strict=True)
            )
            found[name] = _Layer(inputs, gradients, owner, inverses[0], inverses[1])
        return found


class _Layer:
    """Rows of the pairs at one layer: inputs a (M, D), output gradients g (n_signs, M, O), whose pair they are of."""

    def __init__(
        self, inputs: Tensor, gradients: Tensor, owner: Tensor, inputs_inverse: Tensor, inverse: Tensor
    ) -> None:
        self.inputs, self.gradients, self.owner = inputs, gradients, owner
        self.solved_inputs = inputs @ inputs_inverse.to(inputs)
        self.solved_gradients = gradients @ inverse.to(gradients)

    def edit(self, multiplier: Tensor) -> Tensor:
        """H⁻¹ Jᵀ α, (O, D), α by sign and pair."""
        weighted = self._weighted(self.solved_gradients, multiplier)
        return (weighted.T @ self.solved_inputs).cpu().double()

    def slope(self, multiplier: Tensor) -> Tensor:
        """Jᵀ α, (O, D)."""
        return (self._weighted(self.gradients, multiplier).T @ self.inputs).cpu().double()

    def _weighted(self, gradients: Tensor, multiplier: Tensor) -> Tensor:
        return (gradients * multiplier.to(gradients)[:, self.owner][..., None]).sum(0)


def _gram(layer: _Layer, n_pairs: int, n_signs: int) -> Tensor:
    """J H⁻¹ Jᵀ, (n_signs · N, n_signs · N) float64."""
    owner, likeness = layer.owner, layer.inputs @ layer.solved_inputs.T
    gram = likeness.new_zeros(n_signs, n_pairs, n_signs, n_pairs)
    for one in range(n_signs):
        for other in range(one + 1):
            rows = (layer.gradients[one] @ layer.solved_gradients[other].T) * likeness
            by_pair = torch.zeros(n_pairs, len(rows), dtype=rows.dtype, device=rows.device).index_add_(0, owner, rows)
            block = torch.zeros_like(by_pair[:, :n_pairs]).index_add_(1, owner, by_pair)
            gram[one, :, other], gram[other, :, one] = block, block.T
    flat = gram.cpu().double().view(n_signs * n_pairs, -1)
    return (flat + flat.T) / 2


def _rows(name: str, values: Tensor, counted: Tensor) -> Tensor:
    """Of each token, (N · T, D), in at least single precision."""
    rows = values.flatten(0, -2)
    if len(rows) != counted.numel():
        raise UnsupportedModelError(
            f"{name!r} runs on {len(rows)} rows for {counted.numel()} tokens; expected layers that run once on each: "
            "name others with edited_layers="
        )
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _damped_inverse(moment: Tensor, damping: float) -> Tensor:
    """(M + damping · mean diagonal · I)⁻¹."""
    mean = float(moment.diagonal().mean())
    if not 0 < mean < torch.inf:
        raise InputError(
            "layers to edit see or move nothing on the texts; expected others: name them with edited_layers="
        )
    shift = damping * mean * torch.eye(len(moment), dtype=moment.dtype, device="cpu")
    return torch.cholesky_inverse(torch.linalg.cholesky(moment + shift))
