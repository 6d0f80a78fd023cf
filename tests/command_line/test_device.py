"""--device: where the networks of a command run."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fairtrim import save_pruned
from fairtrim_adapters.command_line import main
from fairtrim_adapters.command_line.targets import made_on, networks_of
from tests.pretend_accelerator import Accelerator

pytest.importorskip("typer", reason="needs the extra cli")

WORK = ["--model", "tests.sweep_cases:network", "--data", "tests.sweep_cases:splits"]


@pytest.mark.parametrize("name", ["gpu", "meta", "xla:3", "hpu"])
@pytest.mark.parametrize("command", ["audit", "sweep"])
def test_a_device_that_is_not_there(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--folder", str(tmp_path / "sweep")] if command == "sweep" else []
    assert main([command, *WORK, *folder, "--device", name]) == 2
    assert f"--device '{name}' can't be used by torch " in (said := capsys.readouterr().err)
    assert "expected one of ['cpu'" in said
    assert not list(tmp_path.iterdir())


def test_no_device_where_there_are_no_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--audit", "a.json", "--min", "accuracy=0.5", "--device", "cpu"]) == 2
    assert "--device belong to fairtrim audit" in capsys.readouterr().err
    assert main(["report", "--sweep", str(tmp_path), "-o", f"{tmp_path}/r.md", "--device", "cpu"]) == 2
    assert "--device have no effect on a finished sweep" in capsys.readouterr().err


def test_figures_are_those_of_the_cpu(accelerator: Accelerator, tmp_path: Path) -> None:
    figures = []
    for name in ("cpu", str(accelerator.device)):
        file = tmp_path / f"{name}.json"
        assert main(["audit", *WORK, "--device", name, "--bootstrap", "0", "-q", "--json", str(file)]) == 0
        figures.append(json.loads(file.read_text())["networks"])
    accelerator.check_same(figures[1], figures[0])


def test_networks_and_their_makers_are_moved(accelerator: Accelerator, tmp_path: Path) -> None:
    (dense,) = networks_of(WORK[1], [], 3).values()
    save_pruned(tmp_path / "p.safetensors", dense)
    there = networks_of(WORK[1], [f"{tmp_path}/p.safetensors"], 3, str(accelerator.device))
    for network in there.values():
        assert {parameter.device for parameter in network.parameters()} == {accelerator.device}
        accelerator.check_same(network.state_dict(), dense.state_dict())
    make = made_on(WORK[1], str(accelerator.device))
    assert list(inspect.signature(make).parameters) == ["seed", "n_classes"]
    accelerator.check_same(make(seed=3).state_dict(), dense.state_dict())
    assert isinstance(make(seed=3), nn.Module) and next(make().parameters()).device == accelerator.device
    assert made_on(WORK[1], None)(seed=3)[0].weight.device == torch.device("cpu")
