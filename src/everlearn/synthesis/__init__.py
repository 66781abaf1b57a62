"""Rehearsal rows written by a model: prompts, parsing, filters, selection, refinement."""
