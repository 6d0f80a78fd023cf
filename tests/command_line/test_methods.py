"""Help that lists the methods that may be named."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

pytest.importorskip("typer")

from fairtrim_adapters.command_line import main
from fairtrim_adapters.torch_pruning import IMPORTANCES


@pytest.mark.parametrize("command", ["", "sweep", "prune", "repair"])
def test_help_lists_methods_and_loads_none_of_other_packages(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = EntryPoint("of-others", "nowhere:Nothing", "fairtrim.criteria")
    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: [found] if found.group == group else [])
    IMPORTANCES.refresh()
    try:
        assert main([*filter(None, [command]), "--help"]) == 0
    finally:
        monkeypatch.undo()
        IMPORTANCES.refresh()
    text = " ".join(capsys.readouterr().out.split())
    prunes, repairs = command != "repair", command != "prune"
    assert ("worst-group removes first what raises the loss of the most hurt" in text) is prunes
    assert ("magnitude removes channels of small weights first" in text) is prunes and ("of-others" in text) is prunes
    assert ("threshold-selection moves the threshold" in text) is repairs
    assert ("mean-damage (default) removes first what raises" in text) is prunes
    assert ("parity-fine-tuning (default) edits the output layer" in text) is repairs
    assert ("of small weights first; looks at no data. Take it as the usual rival" in text) is prunes
    if command == "sweep":
        assert "magnitude, mean-damage, worst-group" in text and "0.25, 0.5, 0.75" in text
