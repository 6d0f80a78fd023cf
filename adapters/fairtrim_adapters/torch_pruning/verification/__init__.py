"""A step is tried before the first channel goes."""
