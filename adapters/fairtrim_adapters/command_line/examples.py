"""Command lines that the help shows."""

from __future__ import annotations

__all__ = ["EXAMPLES", "example"]

EXAMPLES = {
    "sweep": r"""
fairtrim sweep --model people.py:network --data people.py:data --folder sweep
fairtrim sweep --model people.py:network --data people.py:data --folder sweep --seeds 3 \
    --criterion magnitude --criterion worst-group --criterion group-saliency:privileged=Male \
    --pruning-ratio 0.25 --pruning-ratio 0.5 --post-processor parity-fine-tuning:epsilon=0.1
""",
    "prune": r"""
fairtrim prune --model people.py:network --data people.py:data --pruning-ratio 0.5 -o pruned.safetensors
fairtrim prune --model people.py:network --data people.py:data --criterion tail-risk:alpha=0.3 --global \
    --iterative-steps 5 --fine-tuning 1 -o pruned.safetensors --onnx pruned.onnx
fairtrim prune --model people.py:network --data people.py:data --criterion magnitude --pruning-ratio 0.8 \
    --iterative-steps 4 --recalibrate-output threshold -o small.safetensors
fairtrim prune --model people.py:network --data people.py:data --macs 0.5 -o half.safetensors
""",
    "smallest": r"""
fairtrim smallest --model people.py:network --data people.py:data --max-drop accuracy=0.01 -o small.safetensors
fairtrim smallest --model people.py:network --data people.py:data --by parameters \
    --max-drop accuracy=0.02 --max-drop recall=0.05 -o small.safetensors
""",
    "audit": r"""
fairtrim audit --model people.py:network --data people.py:data
fairtrim audit --model people.py:network --data people.py:data --checkpoint pruned.safetensors \
    --checkpoint repaired=other.safetensors --json audit.json
""",
    "repair": r"""
fairtrim repair --model people.py:network --data people.py:data -o repaired.safetensors \
    --post-processor parity-fine-tuning:measure=equalized_odds_difference,epsilon=0.05
fairtrim repair --model people.py:network --data people.py:data --checkpoint pruned.safetensors -o both.safetensors
""",
    "report": r"""
fairtrim report --model people.py:network --data people.py:data --checkpoint pruned.safetensors -o report.html
fairtrim report --sweep sweep -o report.html -o model_card.md -o report.json
""",
    "check": r"""
fairtrim check --model people.py:network --data people.py:data --checkpoint pruned.safetensors \
    --max equalized_odds_difference=0.1 --max-drop accuracy=0.01
fairtrim check --audit audit.json --network pruned --max-drop 'accuracy[Female]=0.02' --confident
""",
}
"""By command."""


def example(command: str) -> str:
    """The examples of a command as click prints them: as they are.

    Args:
        command: Its name.

    Returns:
        Text for the end of its help.
    """
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command].strip().splitlines())
