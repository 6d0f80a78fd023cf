"""What a loader gives."""
