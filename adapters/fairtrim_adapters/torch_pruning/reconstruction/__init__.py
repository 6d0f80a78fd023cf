"""Steps of any Torch-Pruning script, refitted: the wrap, and what it measures."""
