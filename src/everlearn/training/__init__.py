"""The trainer, its losses and its batching."""
