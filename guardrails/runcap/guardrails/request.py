"""How an adapter describes a call, and its outcome, without naming a framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .estimate import Prompt
from .pricing import PriceContext
from .ratecard import CacheWrites


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model call about to be made.

    `output_cap` is what the request itself says, tokens a choice; `output_ceiling` what the model can do.
    `attempts_seen` is True only where the client makes no retries of its own. `bounded` is False where settings let the
    call cost more than its text and caps say. `audio` is True where it asks for an answer in audio, `regional` where it
    asks to be served in one region, at the provider's surcharge. `parent_id` names the agent or tool around the call,
    for the sinks.
    """

    call_id: str
    model: str | None
    provider: str | None
    prompt: Prompt
    output_cap: int | None = None
    output_ceiling: int | None = None
    choices: int = 1
    stream: bool = False
    attempts_seen: bool = True
    cache_writes: CacheWrites = "none"
    context: PriceContext | None = None
    bounded: bool = True
    audio: bool = False
    regional: bool = False
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the provider said about itself in its answer.

    `context` is None where it did not say how it was served; `regional` is True where it said it kept to one region.
    `billed_nano` is what it said it charges for the call, in nano-dollars; that is then the cost, whatever prices say.
    """

    model: str | None = None
    id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    context: PriceContext | Literal["standard"] | None = None
    regional: bool = False
    billed_nano: int | None = None
