"""Reports as sections of model cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fairtrim import InputError
from fairtrim_adapters.report import Report
from fairtrim_adapters.report.model_card import BEGIN, END
from tests.report_cases import CARD


def test_model_card_gets_a_section(report: Report, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = report.to_model_card(hub.ModelCard(CARD))
    assert isinstance(card, hub.ModelCard) and card.data.license == "mit"
    assert str(card) == f"{CARD}\n{BEGIN}\n{report.to_markdown().strip()}\n{END}\n"
    behind = f"{card}\n## More\n\nof mine\n"
    later = dataclasses.replace(report, title="Another title")
    changed = later.to_model_card(behind)
    assert str(changed) == behind.replace(report.to_markdown().strip(), later.to_markdown().strip())
    assert str(later.to_model_card(changed)) == str(changed)
    path = tmp_path / "README.md"
    path.write_text(CARD, encoding="utf-8")
    assert str(report.to_model_card(path)) == str(card)
    assert path.read_text(encoding="utf-8") == CARD


@pytest.mark.parametrize("marks", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}\n{BEGIN}{END}"])
def test_model_card_with_broken_comments(report: Report, marks: str) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(InputError, match="mend the card"):
        report.to_model_card(CARD + marks)


def test_model_card_of_another_kind(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(InputError, match="is no file"):
        report.to_model_card(tmp_path / "README.md")
    with pytest.raises(InputError, match="card is a int"):
        report.to_model_card(3)  # type: ignore[arg-type]
