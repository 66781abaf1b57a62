"""The page on version updates."""
