"""A trained network repaired."""
