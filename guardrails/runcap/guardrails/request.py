"""How an adapter describes a call, and its outcome, without naming a framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .course import ANY, Purpose
from .estimate import Prompt
from .pricing import PriceContext
from .ratecard import CacheWrites


@dataclass(slots=True, kw_only=True)
class Request:
    """A model call about to be made; not to be changed afterwards.

    `output_cap` is what the request itself says, tokens a choice; `output_ceiling` what the model can do.
    `attempts_seen` is True only where the client makes no retries of its own. `bounded` is False where settings let the
    call cost more than its text and caps say. `audio` is True where it asks for an answer in audio, `regional` where it
    asks to be served in one region, at the provider's surcharge. `may_clamp` is True where the adapter can set the
    output cap of this very call, and `thinking_tokens` what of the output the model may think away before it answers.
    `attempt` counts the tries of one call, from 1.
    `parent_id` names the agent or tool around the call, for the sinks; `purpose` says what the call is to its run.
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
    may_clamp: bool = False
    thinking_tokens: int = 0
    attempt: int = 1
    parent_id: str | None = None
    purpose: Purpose = ANY

    def with_prompt(self, prompt: Prompt, *, call_id: str, parent_id: str | None, purpose: Purpose = ANY) -> Request:
        """The same call with another prompt."""
        return Request(
            call_id=call_id,
            model=self.model,
            provider=self.provider,
            prompt=prompt,
            output_cap=self.output_cap,
            output_ceiling=self.output_ceiling,
            choices=self.choices,
            stream=self.stream,
            attempts_seen=self.attempts_seen,
            cache_writes=self.cache_writes,
            context=self.context,
            bounded=self.bounded,
            audio=self.audio,
            regional=self.regional,
            may_clamp=self.may_clamp,
            thinking_tokens=self.thinking_tokens,
            parent_id=parent_id,
            purpose=purpose,
        )


@dataclass(slots=True, kw_only=True)
class Response:
    """What the provider said about itself in its answer; not to be changed afterwards.

    `context` is None where it did not say how it was served; `regional` is True where it said it kept to one region.
    `billed_nano` is what it said it charges for the call, in nano-dollars; that is then the cost, whatever prices say.
    """

    model: str | None = None
    id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    context: PriceContext | Literal["standard"] | None = None
    regional: bool = False
    billed_nano: int | None = None
