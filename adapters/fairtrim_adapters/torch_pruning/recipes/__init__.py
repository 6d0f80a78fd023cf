"""The papers from start to end."""
