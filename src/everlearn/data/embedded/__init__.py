"""The embedded world: generated text, tasks and versions, for a first run without any data."""
