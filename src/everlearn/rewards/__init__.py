"""What a completion is worth: its format, and its quality by a scorer."""
