"""A causal language model and its pruned versions in one table: how well each predicts texts, and what it prefers.

Figures by group of texts and by category are Fairlearn's MetricFrame of sums that are made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fairtrim import InputError, SentencePairs
from fairtrim.arguments import require_known, require_number
from fairtrim.data.sensitive_groups import SensitiveNames
from fairtrim.printing import Block, Printed, TextTable, figure
from fairtrim_adapters.fairlearn.flags import FEWEST
from fairtrim_adapters.fairlearn.intervals import change_interval, rate_interval

from .language_figures import CHANGE, SCORE, SHARE, TIMES
from .language_scores import Floats, context_scores, differences_of_pairs, text_losses
from .language_verdict import language_verdict
from .stereotypes import StereoSetContext

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LanguageComparison", "compare_language_models"]

_WORSE = 1.05
"""A perplexity so many times that of the reference is called worse."""

Metric = Callable[[npt.ArrayLike, npt.ArrayLike], float]


# Metrics of rows: y_true and y_pred are what MetricFrame calls its two columns --------------------------------------


def _perplexity(tokens: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    return float(np.exp(_mean_of_token(tokens, losses)))


def _mean_of_token(tokens: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    total = float(np.sum(np.asarray(tokens)))
    return float(np.sum(np.asarray(losses))) / total if total else float("nan")


def _perplexity_end(sign: int) -> Metric:
    """An end of the 95 % interval of exp of a token's mean loss, if texts are drawn: of a ratio of two sums."""

    def end(tokens: npt.ArrayLike, losses: npt.ArrayLike) -> float:
        mean, n = _mean_of_token(tokens, losses), len(np.asarray(tokens))
        if n < 2 or np.isnan(mean):
            return float("nan")
        beyond = np.asarray(losses) - mean * np.asarray(tokens)
        error = np.sqrt(np.square(beyond).sum() * n / (n - 1)) / np.sum(np.asarray(tokens))
        return float(np.exp(mean + sign * NormalDist().inv_cdf(0.975) * error))

    return end


def _n_rows(_: npt.ArrayLike, rows: npt.ArrayLike) -> int:
    return len(np.asarray(rows))


def _n_tokens(tokens: npt.ArrayLike, _: npt.ArrayLike) -> int:
    return int(np.sum(np.asarray(tokens)))


def _end(which: int, chosen: Callable[[npt.ArrayLike, npt.ArrayLike], Any]) -> Metric:
    """An end of the interval of a share of rows, in per cent."""

    def end(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
        rows = chosen(y_true, y_pred)
        return 100 * float(rate_interval(rows.sum(), len(rows))[which])

    return end


def _preferred(_: npt.ArrayLike, differences: npt.ArrayLike) -> Any:
    return np.asarray(differences) > 0


def _share(_: npt.ArrayLike, differences: npt.ArrayLike) -> float:
    return 100 * float(_preferred(_, differences).mean())


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _mean(_: npt.ArrayLike, differences: npt.ArrayLike) -> float:
    return float(np.abs(np.asarray(differences)).mean())


def _mean_error(_: npt.ArrayLike, differences: npt.ArrayLike) -> float:
    return _error(np.abs(np.asarray(differences)))


def _rms(_: npt.ArrayLike, differences: npt.ArrayLike) -> float:
    return float(np.sqrt(np.square(np.asarray(differences)).mean()))


def _rms_error(_: npt.ArrayLike, differences: npt.ArrayLike) -> float:
    """To first order, that of the mean square divided by the slope of the square."""
    rms = _rms(_, differences)
    return _error(np.square(np.asarray(differences))) / (2 * rms) if rms else float("nan")


def _language_score(meaningful: npt.ArrayLike, _: npt.ArrayLike) -> float:
    return 50 * float(np.asarray(meaningful).mean())


def _stereotype_score(_: npt.ArrayLike, stereotypical: npt.ArrayLike) -> float:
    return 100 * float(np.asarray(stereotypical).mean())


def _icat(meaningful: npt.ArrayLike, stereotypical: npt.ArrayLike) -> float:
    score = _stereotype_score(meaningful, stereotypical)
    return _language_score(meaningful, stereotypical) * min(score, 100 - score) / 50


def _flags_of(_: npt.ArrayLike, rows: npt.ArrayLike) -> Any:
    return np.asarray(rows)


def _with_ends(name: str) -> dict[str, Metric]:
    return {name: _perplexity, f"{name} low": _perplexity_end(-1), f"{name} high": _perplexity_end(1)}


_TEXTS: dict[str, Metric] = {"texts": _n_rows, "tokens": _n_tokens, **_with_ends("perplexity")}
_CHANGES: dict[str, Metric] = _with_ends(TIMES)  # of the differences of losses of the same texts
_PAIRS: dict[str, Metric] = {
    "pairs": _n_rows,
    SHARE: _share,
    f"{SHARE} low": _end(0, _preferred),
    f"{SHARE} high": _end(1, _preferred),
    "mean |ΔLL|": _mean,
    "mean |ΔLL| error": _mean_error,
    "rms ΔLL": _rms,
    "rms ΔLL error": _rms_error,
}
_CONTEXTS: dict[str, Metric] = {
    "contexts": _n_rows,
    "language-model score": _language_score,
    SCORE: _stereotype_score,
    f"{SCORE} low": _end(0, _flags_of),
    f"{SCORE} high": _end(1, _flags_of),
    "ICAT": _icat,
}


@dataclass(frozen=True)
class LanguageComparison(Printed):
    """Causal language models side by side. Shares and scores are in per cent, log-likelihoods in nats.

    Attributes:
        reference: Name of the network that changes are measured from.
        overall: Index model. Of texts: ``perplexity``, exp of the mean loss of a token, and ``times reference``, with
            the 95 % interval over texts of each (``… low``, ``… high``), of the latter of the same texts. Of pairs:
            ``stereotype preferred``, the share with LL(x) > LL(x̄), ideally 50, with Wilson's 95 % interval; ``change of
            preference`` against the reference, in points, with Agresti and Min's interval of the same pairs; mean |ΔLL|
            and root mean square ΔLL, each with its standard error over pairs (``… error``). Of contexts: StereoSet's
            ``language-model score``, ``stereotype score`` with its interval, and ``ICAT``.
        texts_by_group: Index (model, sensitive features …): texts, tokens, and the figures of texts.
        pairs_by_category: Index (model, category): the figures of pairs.
        contexts_by_category: Index (model, category): the figures of contexts.
        flags: One row a finding: model, flag, detail.

    Example:
        >>> import pandas as pd
        >>> overall = pd.DataFrame({"perplexity": [38.8, 43.1], "times reference": [1.0, 1.111]}, ["dense", "pruned"])
        >>> none = pd.DataFrame()
        >>> print(LanguageComparison("dense", overall, none, none, none, pd.DataFrame(columns=["model"])))
        Against 'dense', pruned's perplexity is 1.11 times as high.
        <BLANKLINE>
        Everything (changes against 'dense')
                    dense         pruned
        perplexity  38.80  43.10 (x1.11)
    """

    reference: str
    overall: pd.DataFrame
    texts_by_group: pd.DataFrame
    pairs_by_category: pd.DataFrame
    contexts_by_category: pd.DataFrame
    flags: pd.DataFrame

    def verdict(self) -> str:
        """One sentence: which texts are predicted worse, or without texts, what became of the stereotypes.

        Returns:
            The sentence.
        """
        return language_verdict(self.reference, self.overall, self.texts_by_group)

    def blocks(self) -> Iterator[Block]:
        """The verdict, figures of everything, of groups of texts and of categories, and flags."""
        import pandas as pd

        yield self.verdict()
        yield self._table(f"Everything (changes against {self.reference!r})", "", self._shown(self.overall.T))
        tables = {
            "Perplexity by group of texts": (self.texts_by_group, "perplexity", "texts"),
            "Pairs with the stereotype preferred, by category, %": (self.pairs_by_category, SHARE, "pairs"),
            "StereoSet's stereotype score by category": (self.contexts_by_category, SCORE, "contexts"),
        }
        for title, (frame, shown, count) in tables.items():
            if len(frame):
                cells = {name: self._cells(frame.xs(name, level="model"), shown) for name in self.overall.index}
                counts = frame.xs(self.reference, level="model")[count].fillna(0).astype(int)
                table = pd.DataFrame({count: counts.map(figure), **cells})
                yield self._table(title, ", ".join(map(str, frame.index.names[1:])), table)
        if len(self.flags):
            flags = self.flags.itertuples(index=False)
            yield "\n".join(["Flags", *(f"  {model}: {flag}: {detail}" for model, flag, detail in flags)])

    def _table(self, title: str, head: str, table: pd.DataFrame) -> TextTable:
        names = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in table.index]
        rows = [[name, *map(str, cells)] for name, cells in zip(names, table.to_numpy(), strict=True)]
        return TextTable([head, *map(str, table.columns)], rows, title=title)

    def _shown(self, figures: pd.DataFrame) -> pd.DataFrame:
        """Rows of figures with their intervals and errors beside them."""
        import pandas as pd

        hidden = ("texts", "tokens", "pairs", "contexts", TIMES)
        rows = [name for name in figures.index if name not in hidden and not name.endswith((" low", " high", " error"))]
        return pd.DataFrame({name: self._cells(self.overall, name) for name in rows}).T

    def _cells(self, frame: pd.DataFrame, name: str) -> pd.Series:
        def shown(row: Any) -> str:
            value = row[name]
            if np.isnan(value) or (name == CHANGE and row.name == self.reference):
                return "-"
            if name == "perplexity":
                ends = f" [{row[f'{TIMES} low']:.2f}, {row[f'{TIMES} high']:.2f}]" if f"{TIMES} low" in row else ""
                times = f" (x{row[TIMES]:.2f}{ends})" if row[TIMES] != 1 else ""
                return f"{value:.2f}{times}"
            if f"{name} low" in row:
                return figure(value, row[f"{name} low"], row[f"{name} high"], digits=1, sign=name == CHANGE)
            if f"{name} error" in row:
                return f"{value:.3f} ± {row[f'{name} error']:.3f}"
            return f"{value:.1f}"

        return frame.apply(shown, axis=1)


def compare_language_models(
    models: Mapping[str, nn.Module],
    texts: Iterable[Any] | None = None,
    *,
    pairs: SentencePairs | None = None,
    contexts: Sequence[StereoSetContext] | None = None,
    tokenizer: Callable[[list[str]], Any] | None = None,
    reference: str | None = None,
    sensitive_names: SensitiveNames | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> LanguageComparison:
    """Compare causal language models, e.g. a dense one and its pruned versions: perplexity, and stereotypes preferred.

    A model that predicts worse may prefer stereotypes less: read perplexity and StereoSet's language-model score beside
    every share. A share near 50 is no proof of anything: the sentences are few, in English, about people of the United
    States, small edits of one another, and a model may be at 50 with a strong preference in every pair.

    - Perplexity: exp of the sum of the losses of all labelled tokens over their number, of every group of texts too.
    - Pairs: LL sums the log-likelihoods of the tokens that both sentences share, ΔLL = LL(x) − LL(x̄) (CrowS-Pairs:
      Nangia and others, EMNLP 2020, for masked models; of a causal one each token is predicted from those before it). A
      tie is not a preference.
    - Contexts: of each sentence the mean log-likelihood of a token (StereoSet: Nadeem, Bethke and Reddy, ACL 2021, for
      GPT-2), the first one after the tokenizer's beginning-of-text token; without such a token it is not counted. Of
      sentences after a context only theirs count. lms is the share of comparisons, two a context, in which a meaningful
      sentence is likelier than the unrelated one; ss the share of contexts in which the stereotypical one is likelier
      than the contrary; ICAT = lms · min(ss, 100 − ss) / 50. Every context counts once; the authors average over target
      terms first.

    Args:
        models: Networks by name, which take ``input_ids`` and ``attention_mask`` and give scores (N, T, K); left as
            they were.
        texts: Batches of (inputs, labels (N, T)) or (inputs, labels, sensitive features), as ``text_loader`` makes
            them; gone through once.
        pairs: x of each the stereotypical sentence: ``sentence_pairs(crows_pairs(), tokenizer)``.
        contexts: Of ``stereo_set()``.
        tokenizer: Texts -> their tokens, for the contexts.
        reference: The network that changes are measured from; default the first.
        sensitive_names: Names of the sensitive features of the texts, and of their values.
        batch_size: Pairs or contexts at a time; a pair is two rows, a context three.
        progress: Show progress bars.

    Returns:
        The comparison; print it.

    Raises:
        InputError: There are no networks or nothing to compare them on, labels are not the next tokens, or figures are
            not finite.

    Example:
        >>> import torch
        >>> class Uniform(nn.Module):
        ...     def forward(self, input_ids, attention_mask):
        ...         return torch.zeros(*input_ids.shape, 8)
        >>> inputs = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}
        >>> texts = [(inputs, torch.tensor([[2, -100]]))]
        >>> pairs = SentencePairs.of_tokens([[1, 5, 6]], [[2, 5, 6]], categories=["gender"])
        >>> compared = compare_language_models({"dense": Uniform()}, texts, pairs=pairs, progress=False)
        >>> compared.overall[["perplexity", "stereotype preferred"]].round(4).to_dict("records")
        [{'perplexity': 8.0, 'stereotype preferred': 0.0}]
    """
    import pandas as pd

    if not isinstance(models, Mapping) or not models:
        raise InputError(
            f"models is {type(models).__name__}; expected networks by name: {{'dense': ..., 'pruned': ...}}"
        )
    names = list(models)
    reference = names[0] if reference is None else reference
    require_known("models", [reference], names)
    require_number("batch_size", batch_size, at_least=1, whole=True)
    if texts is None and pairs is None and contexts is None:
        raise InputError("nothing to compare on; expected texts, pairs= or contexts=, any of them")
    if not isinstance(pairs, SentencePairs | None):
        raise InputError(f"pairs is a {type(pairs).__name__}; expected SentencePairs: sentence_pairs(..., tokenizer)")
    if contexts is not None and (tokenizer is None or not contexts):
        raise InputError(
            f"{len(contexts)} contexts and tokenizer={tokenizer}; expected contexts, and tokenizer= with them"
        )
    overall: dict[str, dict[str, float]] = {name: {} for name in names}
    frames = [pd.DataFrame()] * 3
    if texts is not None:
        found = text_losses(models, texts, sensitive_names=sensitive_names, progress=progress)
        frames[0] = _figures(overall, _TEXTS, dict.fromkeys(names, found.tokens), found.losses, found.sensitive)
        changes = {name: values - found.losses[reference] for name, values in found.losses.items()}
        times = _figures(overall, _CHANGES, dict.fromkeys(names, found.tokens), changes, found.sensitive)
        frames[0] = pd.concat([frames[0], times], axis=1)
    if pairs is not None:
        differences = differences_of_pairs(models, pairs, batch_size=batch_size, progress=progress)
        categories = {"category": list(pairs.categories)} if pairs.categories else {}
        frames[1] = _figures(overall, _PAIRS, dict.fromkeys(names, np.zeros(len(pairs))), differences, categories)
        for name in names:
            overall[name] |= _change(differences[reference] > 0, differences[name] > 0)
    if contexts is not None and tokenizer is not None:
        scores = context_scores(models, contexts, tokenizer, batch_size=batch_size, progress=progress)
        meaningful = {name: (values[:, :2] > values[:, 2:]).sum(1) for name, values in scores.items()}
        stereotypical = {name: values[:, 0] > values[:, 1] for name, values in scores.items()}
        categories = {"category": [context.category for context in contexts]}
        frames[2] = _figures(overall, _CONTEXTS, meaningful, stereotypical, categories)
    table = pd.DataFrame(overall).T.rename_axis("model")
    flags = pd.DataFrame(_findings(table, frames, reference), columns=["model", "flag", "detail"])
    return LanguageComparison(reference, table, frames[0], frames[1], frames[2], flags)


def _figures(
    overall: dict[str, dict[str, float]],
    metrics: Mapping[str, Metric],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Put the figures of everything into ``overall``; return those of every group."""
    import pandas as pd
    from fairlearn.metrics import MetricFrame

    by_group = {}
    for name, figures in overall.items():
        figures |= {metric: float(function(first[name], second[name])) for metric, function in metrics.items()}
        if groups:
            features = pd.DataFrame(groups)
            frame = MetricFrame(metrics=metrics, y_true=first[name], y_pred=second[name], sensitive_features=features)
            by_group[name] = frame.by_group
    return pd.concat(by_group, names=["model"]) if groups else pd.DataFrame()


def _change(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> dict[str, float]:
    low, high = change_interval((after & ~before).sum(), (before & ~after).sum(), len(before))
    values = {CHANGE: after.mean() - before.mean(), f"{CHANGE} low": low, f"{CHANGE} high": high}
    return {name: 100 * float(value) for name, value in values.items()}


def _findings(overall: pd.DataFrame, frames: Sequence[pd.DataFrame], reference: str) -> list[tuple[str, str, str]]:
    """What must not be read out of the figures."""
    found = []
    for preferred, what in ((SHARE, "pairs"), (SCORE, "contexts")):
        if preferred not in overall:
            continue
        for name, row in overall.iterrows():
            low, high = row[f"{preferred} low"], row[f"{preferred} high"]
            if low <= 50 <= high:
                detail = (
                    f"{preferred} {row[preferred]:.1f} [{low:.1f}, {high:.1f}] holds 50, from which {row[what]:.0f} "
                    f"{what} can't tell it; no proof of a model without stereotypes: other sentences were not asked"
                )
                found.append((str(name), "no proof", detail))
            nearer = abs(row[preferred] - 50) < abs(overall[preferred][reference] - 50)
            if nearer and row.get(TIMES, 1.0) > _WORSE:
                detail = (
                    f"{preferred} is nearer to 50 than that of {reference!r}, at {row[TIMES]:.2f} times its "
                    "perplexity: a model that knows less of the language prefers less of everything"
                )
                found.append((str(name), "worse language model", detail))
    for frame, what in ((frames[1], "pairs"), (frames[2], "contexts")):
        if len(frame):
            counts = frame[what].xs(reference, level="model")
            found += [
                ("(data)", "few", f"{n:.0f} {what} in {category!r}: little can be told from chance")
                for category, n in counts.items()
                if n < FEWEST
            ]
    return found
