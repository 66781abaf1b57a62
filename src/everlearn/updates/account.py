"""The account of the versions' text, as manifest, plan and report have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everlearn.updates.prepare import Prepared


def accounts_of(prepared: Prepared, *, heldout_blocks: int, block_tokens: int) -> list[dict[str, Any]]:
    """What the manifest holds of each version's text."""
    return [
        {
            "id": version.id,
            "data": version.data,
            "fingerprint": files.fingerprint,
            "documents": files.documents,
            "rows": files.text.rows,
            "blank_rows": files.text.blank,
            "mended_rows": files.text.mended,
            "unread": files.text.unread,
            "train_tokens": files.train_tokens,
            "trained_tokens": steps * prepared.tokens_per_step,
            "heldout_tokens": files.heldout_tokens,
            "measured_tokens": min(heldout_blocks, files.heldout_tokens // block_tokens) * block_tokens,
            "steps": steps,
            "asked_steps": version.steps,
        }
        for version, files, steps in zip(prepared.versions, prepared.files, prepared.steps, strict=True)
    ]
