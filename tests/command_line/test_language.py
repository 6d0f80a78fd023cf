"""Language models from the command line: a folder in, a folder out, and tables of perplexity and stereotypes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairtrim import InputError, SentencePairs, load_pruned
from fairtrim_adapters.command_line import main
from fairtrim_adapters.command_line.language_folders import read_folder
from fairtrim_adapters.huggingface import compare_language_models, next_token_labels, pruning_options
from fairtrim_adapters.sweep import DataSplits, prune_copy
from fairtrim_adapters.torch_pruning import MeanDamageImportance, smallest

pytest.importorskip("typer", reason="needs the extra cli")

WORK = ["--model", "dense", "--data", "work:data"]
SIZES = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}


def texts(seed: int, n: int, length: int = 7) -> list[Any]:
    ids = torch.randint(0, 23, (n, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[::3, -2:] = 0
    labels = next_token_labels(ids.masked_fill(mask == 0, -100))
    return [({"input_ids": ids, "attention_mask": mask}, labels, ["a", "b", "b", "b"] * (n // 4))]


def pairs() -> SentencePairs:
    rows = torch.randint(0, 11, (9, 5), generator=torch.Generator().manual_seed(5)).tolist()
    return SentencePairs.of_tokens(
        [[20, *row] for row in rows], [[21, *row] for row in rows], categories=["x", "y", "y"] * 3
    )


def data() -> dict[str, Any]:
    return {"test": texts(1, 48), "scoring": texts(2, 40), "validation": texts(3, 44), "pairs": pairs()}


def _changed(change: Any) -> dict[str, Any]:
    ((inputs, labels, people),) = texts(1, 48)
    return {**data(), "test": [change(inputs, labels, people)]}


def repeated() -> dict[str, Any]:
    return _changed(lambda inputs, labels, people: (inputs, _of_tokens(**inputs), people))


def _of_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    return input_ids.masked_fill(attention_mask == 0, -100)


def of_classes() -> dict[str, Any]:
    return _changed(lambda inputs, labels, people: (inputs, labels[:, 0], people))


def unlabelled() -> dict[str, Any]:
    return _changed(lambda inputs, labels, people: inputs)


def calling() -> dict[str, Any]:
    return {**data(), "output_transform": lambda output: output.logits}


def _weights(model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> Path:
    path = tmp_path_factory.mktemp("llama")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    _weights(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **heads))).save_pretrained(path)
    for name in ("tokenizer.json", "README.md", "old.bin"):
        (path / name).write_text("{}")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Path) -> Path:
    shutil.copytree(llama, tmp_path / "dense")
    (tmp_path / "work.py").write_text("from tests.command_line.test_language import *\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.delitem(__import__("sys").modules, "work", raising=False)
    return tmp_path


def _options(network: Any) -> dict[str, Any]:
    return {**pruning_options(network, prune=["intermediate"]), "global_pruning": False}


def _same(one: Any, other: Any) -> None:
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_folder_is_pruned_to_a_folder(folder: Path, transformers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *WORK, "--pruning-ratio", "0.25", "-o", "pruned/", "-q"]) == 0
    text, dense = capsys.readouterr().out, read_folder(Path("dense"), "--model")
    expected = prune_copy(
        dense,
        MeanDamageImportance(compensated=True),
        DataSplits.of(data()),
        0.25,
        pruner_options=_options,
        progress=False,
    )
    pruned = transformers.AutoModelForCausalLM.from_pretrained("pruned")
    assert pruned.config.intermediate_size == 15 and pruned.config.use_cache
    _same(pruned, expected)
    assert {path.name for path in Path("pruned").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    networks = {"dense": dense, "pruned": pruned}
    told = str(compare_language_models(networks, data()["test"], pairs=pairs(), progress=False))
    assert told in text and "accuracy" not in text and max(map(len, text.splitlines())) < 100
    assert main(["audit", *WORK, "--checkpoint", "pruned", "-q"]) == 0
    assert told in capsys.readouterr().out
    ids = data()["test"][0][0]["input_ids"][:1]
    generated = [pruned.generate(ids, max_new_tokens=4, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*generated)


@pytest.mark.slow
def test_smallest_keeps_the_loss_of_each_group(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--by", "parameters", "--max-drop", "loss=0.3", "--grid", "0.3", "-o", "small.safetensors", "-q"]
    assert main(["smallest", *WORK, *options]) == 0
    text, dense, given = capsys.readouterr().out, read_folder(Path("dense"), "--model"), data()
    example = {name: values[:1] for name, values in given["test"][0][0].items()}
    expected = smallest(
        dense,
        given["scoring"],
        example,
        held_out=given["validation"],
        max_drop={"loss": 0.3},
        by="parameters",
        grid=0.3,
        pruner_options=lambda network: pruning_options(network, prune=["intermediate"]),
        progress=False,
    )
    assert "accuracy" not in text and f"{100 * expected.parameters:.1f} % of the parameters" in text
    assert expected.parameters < 1 and f"{expected.measured['loss change'].iloc[-1]:+.4f}"[:6] in text
    _same(load_pruned("small.safetensors", dense), expected.model)


def test_figures_of_groups_go_through_the_gate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("dense", "pruned")
    other: Any = read_folder(Path("dense"), "--model")
    with torch.no_grad():
        other.lm_head.weight *= 1.1
    other.save_pretrained("pruned")
    networks = {name: read_folder(Path(name), "--model") for name in ("dense", "pruned")}
    compared = compare_language_models(networks, data()["test"], pairs=pairs(), progress=False)
    assert main(["audit", *WORK, "--checkpoint", "pruned", "--json", "a.json", "-q"]) == 0
    row = json.loads(Path("a.json").read_text())["networks"]["pruned"]
    of_group = compared.texts_by_group.loc["pruned"].loc["a"]
    assert row["perplexity[a]"] == of_group["perplexity"] and row["people[a]"] == 12 and row["people[b]"] == 36
    assert row["perplexity_ratio_high[a]"] == of_group["times reference high"]
    assert row["stereotype_preferred_low"] == compared.overall.loc["pruned", "stereotype preferred low"]
    ratio = row["perplexity_ratio"]
    check = ["check", "--audit", "a.json", "--min-people", "0", "--max"]
    assert main(["report", *WORK, "--checkpoint", "pruned", "-o", "r.md", "-q"]) == 0
    assert "### Pairs of sentences" in Path("r.md").read_text()
    capsys.readouterr()
    assert main([*check, f"perplexity_ratio={ratio + 0.001}"]) == 0
    assert main([*check, f"perplexity_ratio={ratio - 0.001}"]) == 1
    assert main([*check, f"perplexity_ratio={ratio + 0.001}", "--confident"]) == 1
    assert "over the whole interval" in capsys.readouterr().out
    assert main(["check", "--audit", "a.json", "--max", "perplexity=1e9"]) == 1  # 12 texts are too few
    assert "group a has 12 people" in capsys.readouterr().out


@pytest.mark.slow
def test_the_hidden_size_and_a_file_as_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *WORK, "--pruning-ratio", "0.25", "--prune", "hidden", "-o", "narrow", "-q"]) == 0
    network: Any = read_folder(Path("narrow"), "--model")
    assert network.config.hidden_size == 12 and network.config.intermediate_size == 20
    assert main(["prune", *WORK, "--global", "-o", "once.safetensors", "-q"]) == 0
    options = ["--checkpoint", "once.safetensors", "--ignore", "lm_head", "-o", "twice.safetensors", "-q"]
    capsys.readouterr()
    assert main(["prune", *WORK, *options]) == 0
    assert "given" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:fairtrim leaves these dependency groups")
def test_what_the_config_has_no_words_for_is_kept_in_a_file(
    folder: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.GPT2Config(
        vocab_size=23, n_embd=12, n_inner=20, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    shutil.rmtree("dense")
    _weights(transformers.GPT2LMHeadModel(config)).save_pretrained("dense")
    options = ["--prune", "heads", "--pruning-ratio", "0.5", "--criterion", "mean-damage", "-o", "pruned", "-q"]
    assert main(["prune", *WORK, *options]) == 2
    said = capsys.readouterr().err
    assert "can't say that" in said and "the network is in pruned.safetensors" in said
    network: Any = load_pruned("pruned.safetensors", read_folder(Path("dense"), "--model"))
    assert network.transformer.h[0].attn.num_heads == 2 and not Path("pruned").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "--model", "dense", "--data", "work:repeated"], "the labels are the tokens themselves"),
        (["audit", "--model", "dense", "--data", "work:of_classes"], "expected the next token at each"),
        (["audit", "--model", "dense", "--data", "work:unlabelled"], "expected the target under 'labels'"),
        (["audit", "--model", "dense", "--data", "work:calling"], "have output_transform"),
        (["audit", "--model", ".", "--data", "work:data"], "no config.json; expected a folder"),
        (["prune", *WORK, "-o", "dense/"], "is the folder of --model"),
        (["prune", *WORK, "-o", "full"], "not empty"),
        (["prune", *WORK, "-o", "no/where"], "doesn't exist"),
        (["prune", *WORK, "-o", "x", "--global"], "one size for all layers"),
        (["prune", *WORK, "-o", "x", "--prune", "feed"], "prune=.'feed'"),
        (["prune", *WORK, "-o", "x", "--prune", "heads", "--pruner-options", "work:data"], "one of them"),
        (["smallest", *WORK, "-o", "x", "--max-drop", "recall=0.1"], "expected loss=0.05"),
        (["repair", *WORK, "-o", "x"], "this is a language model"),
        (["sweep", *WORK, "--folder", "s"], "this is a language model"),
        (["repair", "--model", "work:data", "--data", "work:data", "-o", "x"], "this is a language model"),
    ],
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full", "file").touch()
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message.replace(".'feed'", "['feed'") in said
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "holds a BertForMaskedLM, which is no causal language model"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"model_type": "unheard of"}, "transformers can't read it"),
        ({"num_hidden_layers": 3}, "9 weights of a llama are missing"),
    ],
)
def test_folders_of_something_else(folder: Path, entry: dict[str, Any], message: str) -> None:
    path = Path("dense", "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    with pytest.raises(InputError, match=message):
        read_folder(Path("dense"), "--model")
    Path("dense", "adapter_config.json").touch()
    with pytest.raises(InputError, match="merge_and_unload"):
        read_folder(Path("dense"), "--model")


def test_a_folder_of_gguf(folder: Path) -> None:
    Path("packed").mkdir()
    Path("packed", "x.gguf").touch()
    with pytest.raises(InputError, match="gguf_file="):
        read_folder(Path("packed"), "--model")
