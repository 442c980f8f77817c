"""The calls of a guarded model: admitted, clamped, tried again, metered and settled; each attempt is a permit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from runcap.guardrails.errors import Refused
from runcap.guardrails.guard import Guard
from runcap.guardrails.inflight import enter
from runcap.guardrails.permit import Permit
from runcap.guardrails.request import Request
from runcap.guardrails.run import Run

from .attachment import Attachment
from .carrying import purpose_of
from .clients import delay_before, is_worth_retrying, take_over_retries
from .contents import tell_asked
from .cut import Reader, check_whole, finish
from .errors import bubbling
from .hook import last_origin, parent_of
from .messages import Walk, Walks
from .outputcap import cap_attribute, capped, uncapped
from .running import metadata_here, node_here
from .settling import Note, fail
from .sketch import GuardedSketch, GuardedSketches
from .surrounding import AsyncSurrounded, Surrounded
from .tree import Node


class GuardedCalls:
    """Makes the calls of every guarded model of one class: of `base`, which is what it was before it was guarded."""

    def __init__(self, guard: Guard, base: type[BaseChatModel]) -> None:
        self.guard = guard
        self.base = base
        self.attachment = Attachment.of(guard)
        self.cap_attribute = cap_attribute(base)
        self.sketches = GuardedSketches(may_clamp=self.cap_attribute is not None)

    def generate(self, model: BaseChatModel, messages: list[BaseMessage], asked: Asked) -> ChatResult:
        """See `BaseChatModel._generate`."""
        call = _Call(self, model, messages, asked, asynchronous=False)
        while True:
            permit = call.admit()
            try:
                view, kwargs = call.view(permit)
                with self.guard.sinks.around_call(permit.call_id):
                    result = self.base._generate(view, messages, **kwargs)  # noqa: SLF001 - what is guarded
            except BaseException as error:  # noqa: BLE001 - delay() raises it again
                call.failed(permit, error)
                permit.wait_until_booked()
                self.guard.clock.sleep(call.delay(error))
            else:
                lost = finish(self.guard, permit, result)
                permit.wait_until_booked()
                check_whole(self.guard, permit, lost=lost)
                return result

    async def agenerate(self, model: BaseChatModel, messages: list[BaseMessage], asked: Asked) -> ChatResult:
        """See `BaseChatModel._agenerate`."""
        call = _Call(self, model, messages, asked, asynchronous=True)
        while True:
            permit = await call.aadmit()
            try:
                view, kwargs = call.view(permit)
                with self.guard.sinks.around_call(permit.call_id):
                    result = await self.base._agenerate(view, messages, **kwargs)  # noqa: SLF001 - what is guarded
            except BaseException as error:  # noqa: BLE001 - delay() raises it again
                call.failed(permit, error)
                await permit.booked()
                await self.guard.clock.asleep(call.delay(error))
            else:
                lost = finish(self.guard, permit, result)
                await permit.booked()
                check_whole(self.guard, permit, lost=lost)
                return result

    def stream(self, model: BaseChatModel, messages: list[BaseMessage], asked: Asked) -> Iterator[ChatGenerationChunk]:
        """See `BaseChatModel._stream`."""
        call = _Call(self, model, messages, asked, asynchronous=False)
        while True:
            permit = call.admit()
            reader = Reader(self.guard, permit)
            try:
                view, kwargs = call.view(permit)
                chunks = self.base._stream(view, messages, **kwargs)  # noqa: SLF001 - what is guarded
                for chunk in Surrounded(self.guard.sinks, permit.call_id, chunks):
                    yield reader.read(chunk)
                    if reader.is_cut():
                        _close(chunks)
                        yield reader.mark()
                        break
            except BaseException as error:
                reader.failed(error)
                if reader.began:
                    raise
                self.guard.clock.sleep(call.delay(error))
            else:
                lost = reader.finish()
                permit.wait_until_booked()
                check_whole(self.guard, permit, lost=lost)
                return

    async def astream(
        self, model: BaseChatModel, messages: list[BaseMessage], asked: Asked
    ) -> AsyncIterator[ChatGenerationChunk]:
        """See `BaseChatModel._astream`."""
        call = _Call(self, model, messages, asked, asynchronous=True)
        while True:
            permit = await call.aadmit()
            reader = Reader(self.guard, permit)
            try:
                view, kwargs = call.view(permit)
                chunks = self.base._astream(view, messages, **kwargs)  # noqa: SLF001 - what is guarded
                async for chunk in AsyncSurrounded(self.guard.sinks, permit.call_id, chunks):
                    yield reader.read(chunk)
                    if reader.is_cut():
                        await _aclose(chunks)
                        yield reader.mark()
                        break
            except BaseException as error:
                reader.failed(error)
                await permit.booked()
                if reader.began:
                    raise
                await self.guard.clock.asleep(call.delay(error))
            else:
                lost = reader.finish()
                await permit.booked()
                check_whole(self.guard, permit, lost=lost)
                return


class Asked:
    """What a method of the model was called with, beside the messages."""

    __slots__ = ("kwargs", "run_manager", "stop")

    def __init__(self, stop: list[str] | None, run_manager: Any, kwargs: Mapping[str, Any]) -> None:
        self.stop = stop
        self.run_manager = run_manager
        self.kwargs = kwargs


class _Call:
    """One call, over all its attempts."""

    def __init__(
        self,
        calls: GuardedCalls,
        model: BaseChatModel,
        messages: list[BaseMessage],
        asked: Asked,
        *,
        asynchronous: bool,
    ) -> None:
        self._calls = calls
        self._guard = calls.guard
        self._model = model
        self._messages = messages
        self._asked = asked
        self._attempt = 0
        self._retries = take_over_retries(model, asynchronous=asynchronous)
        self._sketch: GuardedSketch = calls.sketches.of(
            model, asked.stop, asked.kwargs, attempts_seen=self._retries is not None
        )
        parent_run_id, self._metadata = _origin(model, asked.run_manager)
        self._parent: Node | None = calls.attachment.nodes.get(parent_run_id)
        self._purpose = purpose_of(model)
        self._error: BaseException | None = None
        self._call_id = ""
        self._walk: Walk

    def admit(self) -> Permit:
        """Admit an attempt; may wait.

        Raises:
            Refused: it may not be made.
        """
        try:
            run = self._run()
            return self._admitted(self._guard.admit(self._describe(run), run, wait=True, renew=self._renewer(run)))
        except Refused as refused:
            raise bubbling(refused) from self._error

    async def aadmit(self) -> Permit:
        """`admit`, without blocking the loop."""
        try:
            run = self._run()
            permit = await self._guard.aadmit(self._describe(run), run, wait=True, renew=self._renewer(run))
        except Refused as refused:
            raise bubbling(refused) from self._error
        self._guard.calls.reap_with_task(permit)
        return self._admitted(permit)

    def view(self, permit: Permit) -> tuple[BaseChatModel, dict[str, Any]]:
        """The model as it was before it was guarded, with the permit's output cap, and what to call it with."""
        model, base, attribute = self._model, self._calls.base, self._calls.cap_attribute
        kwargs, state = dict(self._asked.kwargs), model.__dict__
        if permit.output_cap is not None and attribute is not None:
            kwargs, state = uncapped(kwargs), capped(state, attribute, permit.output_cap)
        view = base.__new__(base)
        # The very same state where nothing is changed: clients made lazily and counters kept in it are not lost.
        object.__setattr__(view, "__dict__", state)
        for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(view, name, getattr(model, name))
        return view, {"stop": self._asked.stop, "run_manager": self._asked.run_manager, **kwargs}

    def failed(self, permit: Permit, error: BaseException) -> None:
        """An attempt failed."""
        fail(permit, error, None)

    def delay(self, error: BaseException) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            BaseException: the error itself, where there is none.
        """
        self._attempt += 1
        worth = isinstance(error, Exception) and not isinstance(error, Refused) and is_worth_retrying(error)
        if not worth or self._attempt > (self._retries or 0):
            raise error
        self._error = error
        return delay_before(self._attempt, cast("Exception", error))

    def _run(self) -> Run:
        nodes = self._calls.attachment.nodes
        run = self._guard.scope(nodes.run_of(self._parent, self._metadata), self._sketch.model)
        nodes.last_run = run
        self._call_id = self._guard.new_id()
        return run

    def _describe(self, run: Run) -> Request:
        walks: Walks = run.notes.get(Walks) or run.notes.setdefault(Walks, Walks())
        self._walk = walks.walk(self._sketch.base, self._messages, self._guard.measured)
        shown = self._parent.shown() if self._parent is not None else None
        request = self._sketch.request(self._walk, call_id=self._call_id, parent_id=shown, purpose=self._purpose)
        request.attempt = self._attempt + 1
        return request

    def _renewer(self, run: Run) -> Any:
        return lambda: self._describe(run)

    def _admitted(self, permit: Permit) -> Permit:
        permit.note = Note.of(self._walk)
        enter(permit)
        tell_asked(self._guard.sinks, permit.call_id, self._messages, self._sketch.call)
        return permit


def _origin(model: BaseChatModel, run_manager: Any) -> tuple[Any, Mapping[str, Any]]:
    """Who called: as the run manager has it, else as callbacks were told, else as the running node's context has it."""
    if run_manager is not None:
        return parent_of(run_manager.parent_run_id), run_manager.metadata or {}
    told = last_origin()
    if told is not None and told.serialized is model.__dict__.get("_serialized"):
        return parent_of(told.parent_run_id), told.metadata
    return node_here(), metadata_here()


def _close(chunks: Iterator[ChatGenerationChunk]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()


async def _aclose(chunks: AsyncIterator[ChatGenerationChunk]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
