"""How many random examples the dearest tests try: all of them once, on the first Python; a part on the others."""

from __future__ import annotations

import os

_DIVISOR = int(os.environ.get("RUNCAP_EXAMPLES_DIVISOR", "1"))


def examples(wanted: int) -> int:
    """So many, or the part of them that RUNCAP_EXAMPLES_DIVISOR says."""
    return max(wanted // _DIVISOR, 10)
