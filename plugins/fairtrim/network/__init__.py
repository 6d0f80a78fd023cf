"""A callable network and its last layer."""
