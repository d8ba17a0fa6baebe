"""Settings that the general recipe for tiny configurations does not find, by model type."""

from __future__ import annotations

from typing import Any

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "t5": {"decoder_start_token_id": 0},
}
