"""Instances, tasks and streams; file formats; prompts."""
