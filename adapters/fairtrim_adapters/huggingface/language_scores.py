"""What causal language models give texts, pairs of sentences and contexts: sums over tokens, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fairtrim import InputError, SentencePairs, pair_differences
from fairtrim.data.batches import Batch, iterate_batches
from fairtrim.data.labels import require_labels_of_tokens
from fairtrim.data.sensitive_groups import SensitiveEncoder, SensitiveNames
from fairtrim.data.token_rows import token_rows
from fairtrim.devices import model_device, to_device
from fairtrim.measures.log_likelihood import sums_of_token_losses, token_log_likelihoods
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.progress import progress_bar

from .stereotypes import StereoSetContext

__all__ = ["TextLosses", "check_next_tokens", "context_scores", "differences_of_pairs", "text_losses"]

_SIDES = ("stereotype", "antistereotype", "unrelated")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TextLosses:
    """Losses of N texts.

    Attributes:
        tokens: Labelled tokens of each text, (N,).
        losses: Of each network by name, the sum of their losses in nats, (N,).
        sensitive: Values of each sensitive feature by name, (N,); empty if the loader has none.
    """

    tokens: npt.NDArray[np.int64]
    losses: dict[str, Floats]
    sensitive: dict[str, list[str]]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which of several networks is the one that can't read the texts."""
    try:
        yield
    except InputError as error:
        raise InputError(f"network {name!r}: {error}") from error


def _require_causal(models: Mapping[str, nn.Module], tokens: Sequence[int]) -> None:
    """Refuse networks whose scores change with tokens that come later, as those of masked language models do.

    They would be asked for tokens that they see. ``tokens`` are two or more that all networks know.
    """
    with preserved_random_state(), _reading(models):
        for name, model in models.items():
            ids = torch.tensor([[tokens[0], token] for token in dict.fromkeys(tokens[:8])], device=model_device(model))
            batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids, None, 0)
            with _named(name):
                first = ScoredNetwork(model).scores(batch, positions=True)[:, 0].float()
            if bool(((first - first[0]).abs() > 1e-2 * (1 + first[0].abs())).any()):
                raise InputError(
                    f"network {name!r} is a {type(model).__name__}, whose scores at a token change with the token "
                    "after it, as those of a masked language model do; expected causal language models, which predict "
                    "each token from those before it"
                )


@contextmanager
def _reading(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """All networks in eval mode, and as they were afterwards."""
    with ExitStack() as stack, torch.no_grad():
        for model in models.values():
            stack.enter_context(preserved_model(model))
        yield


def text_losses(
    models: Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    sensitive_names: SensitiveNames | None = None,
    progress: bool = True,
) -> TextLosses:
    """Sums of the losses of the tokens of each text; the loader is gone through once.

    Refused: labels that are not the next tokens (N, T), and losses that are not finite.
    """
    encoder = SensitiveEncoder(sensitive_names)
    tokens: list[Tensor] = []
    losses: dict[str, list[Tensor]] = {name: [] for name in models}
    sensitive: dict[str, list[str]] = {}
    with preserved_random_state(loader), _reading(models):
        for batch in iterate_batches(loader, None, progress=progress, description="perplexity"):
            check_next_tokens(batch)
            if not tokens and (ids := _tokens_of(batch)):
                _require_causal(models, ids)
            tokens.append((batch.target >= 0).sum(1).cpu())
            for name, model in models.items():
                losses[name].append(_losses(name, model, batch))
            columns = {} if batch.sensitive is None else encoder.named_columns(batch.sensitive, len(batch))
            if batch.sensitive is None:
                encoder.encode(None, len(batch))  # refuses where other batches have some
            for feature, values in columns.items():
                sensitive.setdefault(feature, []).extend(values)
    counted = torch.cat(tokens).numpy()
    if not counted.sum():
        raise InputError("no token of any text has a label of at least 0; expected some: see text_loader")
    return TextLosses(counted, {name: torch.cat(parts).numpy() for name, parts in losses.items()}, sensitive)


def _tokens_of(batch: Batch) -> list[int]:
    """Those of the first text, if the batch is one of tokens with their mask."""
    inputs = batch.inputs if isinstance(batch.inputs, Mapping) else {}
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    return ids[0][mask[0].bool()].tolist() if isinstance(ids, Tensor) and isinstance(mask, Tensor) else []


def check_next_tokens(batch: Batch) -> None:
    """Refuse labels that are not one integer for each token, are at padding, or are the tokens themselves."""
    ids = batch.inputs.get("input_ids") if isinstance(batch.inputs, Mapping) else None
    target = batch.target
    if target.ndim != 2 or target.is_floating_point() or (isinstance(ids, Tensor) and ids.shape != target.shape):
        raise InputError(
            f"batch {batch.index}: the labels have shape {tuple(target.shape)} and type {target.dtype}; expected the "
            "next token at each of the tokens, (N, T) integers, as text_loader and next_token_labels make them"
        )
    require_labels_of_tokens(batch.inputs, target, batch.index)


def _losses(name: str, model: nn.Module, batch: Batch) -> Tensor:
    """(N,) float64."""
    device = model_device(model)
    target = batch.target.to(device)
    moved = Batch(to_device(batch.inputs, device), target, None, batch.index)
    with _named(name):
        scores = ScoredNetwork(model).scores(moved, positions=True)
    found = sums_of_token_losses(scores, target, target >= 0)
    _check_finite(name, found, "losses", f"batch {batch.index}")
    return found


def _check_finite(name: str, values: Tensor, what: str, where: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"network {name!r} gave {what} that are not finite in {where}")


def differences_of_pairs(
    models: Mapping[str, nn.Module], pairs: SentencePairs, *, batch_size: int, progress: bool = True
) -> dict[str, Floats]:
    """ΔLL of each pair by each network, (N,), those of similar length in a batch."""
    _require_causal(models, pairs.input_ids[0, 0][pairs.attention_mask[0, 0].bool()].tolist())
    lengths = pairs.attention_mask.sum(2).amax(1)

    def found(name: str, model: nn.Module, rows: list[int]) -> Tensor:
        part = pairs.take(rows)
        inputs = {"input_ids": part.input_ids, "attention_mask": part.attention_mask, "shared": part.shared}
        return pair_differences(model, to_device(inputs, model_device(model)))[:, 0]

    return _by_length(models, lengths.tolist(), found, batch_size=batch_size, what="pairs", progress=progress)


def context_scores(
    models: Mapping[str, nn.Module],
    contexts: Sequence[StereoSetContext],
    tokenizer: Callable[[list[str]], Any],
    *,
    batch_size: int,
    progress: bool = True,
) -> dict[str, Floats]:
    """Mean log-likelihood of a token, (N, 3), of the stereotypical, the contrary and the unrelated sentence.

    Of sentences after a context only theirs count. The beginning-of-text token stands before, if the tokenizer has one.
    """
    texts = [_text(context, side) for context in contexts for side in _SIDES]
    rows = _tokens(texts, tokenizer)
    given = _tokens(["" if context.within_sentence else context.context for context in contexts], tokenizer)
    first = [max(1, _n_common(row, given[k // 3])) for k, row in enumerate(rows)]
    if empty := [text for text, row, start in zip(texts, rows, first, strict=True) if len(row) <= start]:
        raise InputError(f"{empty[0]!r} has no token to score; expected some after the first, or after the context")

    def found(name: str, model: nn.Module, numbers: list[int]) -> Tensor:
        chosen = [3 * number + side for number in numbers for side in range(3)]
        device = model_device(model)
        ids = pad_sequence([torch.tensor(rows[k], device="cpu") for k in chosen], batch_first=True).to(device)
        places = torch.arange(ids.shape[1], device=device)
        mask = places < torch.tensor([[len(rows[k])] for k in chosen], device=device)
        counted = mask & (places >= torch.tensor([[first[k]] for k in chosen], device=device))
        batch = Batch({"input_ids": ids, "attention_mask": mask.long()}, ids, None, 0)
        likelihoods = token_log_likelihoods(ScoredNetwork(model).scores(batch, positions=True), ids)
        return ((likelihoods * counted).sum(1) / counted.sum(1)).view(-1, 3)

    _require_causal(models, rows[0])
    longest = [max(map(len, rows[3 * n : 3 * n + 3])) for n in range(len(contexts))]
    return _by_length(models, longest, found, batch_size=batch_size, what="contexts", progress=progress)


def _text(context: StereoSetContext, side: str) -> str:
    sentence = str(getattr(context, side))
    return sentence if context.within_sentence else f"{context.context} {sentence}"


def _tokens(texts: list[str], tokenizer: Callable[[list[str]], Any]) -> list[list[int]]:
    start = getattr(tokenizer, "bos_token_id", None)
    rows = token_rows(texts, tokenizer)
    return [row if start is None or row[:1] == [start] else [start, *row] for row in rows]


def _n_common(row: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row, other, strict=False)))


def _by_length(
    models: Mapping[str, nn.Module],
    lengths: Sequence[int],
    found: Callable[[str, nn.Module, list[int]], Tensor],
    *,
    batch_size: int,
    what: str,
    progress: bool,
) -> dict[str, Floats]:
    """Values of each sample in their order, computed in batches of similar length."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    back = torch.tensor(order, device="cpu").argsort()
    values: dict[str, Floats] = {}
    with (
        _reading(models),
        progress_bar(description=what, total=len(models) * len(batches), shown=progress, unit="batch") as bar,
    ):
        for name, model in models.items():
            parts = []
            for numbers in batches:
                with _named(name):
                    parts.append(found(name, model, numbers).cpu().double())
                _check_finite(name, parts[-1], "log-likelihoods", f"the {what}")
                bar.update()
            values[name] = torch.cat(parts)[back].numpy()
    return values
