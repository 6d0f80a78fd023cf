"""One network beside another."""
