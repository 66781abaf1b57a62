"""Task metrics, continual metrics and general ability."""
