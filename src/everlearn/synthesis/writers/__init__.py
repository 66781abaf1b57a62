"""Who writes new instances of a task, from what, and what is read from the continuations: one file a way."""
