"""Names of places in a run folder, for those who write there and those who read."""

from __future__ import annotations

BASE_STAGE = "00-base"
"""Folder name, among the stages, of what is measured before any training."""
FINDINGS = "findings"
"""Folder of a stage with what the method has found."""
PROBING = "probing"
"""Folder of a stage with what probes on the model's features have answered."""
VLLM_LOG = "vllm.log"
"""File in the run folder: what a vLLM that was started for it prints."""
ENGINE = "engine"
"""Key of the manifest: what has written, where it was not this process, and how much."""
