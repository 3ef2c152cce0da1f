"""An engine and the slots that run it, lent to one call each."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from destseg_deploy.runtime.device import Device
from destseg_deploy.runtime.trt_engine import TrtEngine
from destseg_deploy.runtime.trt_plan import GraphPolicy
from destseg_deploy.runtime.trt_slot import Slot


class SlotPool:
    """Lends slots. A pool that has been replaced is retired: it ends when its last call does."""

    def __init__(
        self, engine: TrtEngine, device: Device, contexts: int, graphs: GraphPolicy
    ) -> None:
        """Take ownership of an engine and make its slots.

        Raises:
            BackendError: If there is not enough memory; the engine is closed then, too.
        """
        self.engine = engine
        self.retired = False
        self._device = device
        self._changed = threading.Condition()
        with ExitStack() as stack:
            stack.callback(self._close_engine)
            self._slots: list[Slot] = []
            for _ in range(contexts):
                self._slots.append(Slot(engine, device, graphs))
                stack.callback(self._slots[-1].close)
            stack.pop_all()
        self._idle = list(self._slots)

    @property
    def ended(self) -> bool:
        """Whether it is retired and every slot has come back."""
        return self.retired and len(self._idle) == len(self._slots)

    def take(self, *, wait: bool = True) -> Slot | None:
        """Lend a slot, the one used last if it can be, whose graphs are warm.

        Args:
            wait: Wait until one is free.

        Returns:
            None if the pool is retired, or none is free and ``wait`` is False.
        """
        with self._changed:
            while wait and not self._idle and not self.retired:
                self._changed.wait()
            return self._idle.pop() if self._idle and not self.retired else None

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; nothing may be queued on it any more."""
        with self._changed:
            self._idle.append(slot)
            self._changed.notify()
            if self.retired:
                self._close_idle()

    def retire(self) -> None:
        """Lend no more; free what is idle now, and what is lent when it comes back."""
        with self._changed:
            self.retired = True
            self._changed.notify_all()
            self._close_idle()

    def close(self) -> None:
        """Lend no more and free everything, lent or not; a second call does nothing."""
        with self._changed:
            self._idle = list(self._slots)
        self.retire()

    def _close_idle(self) -> None:
        with ExitStack() as stack:
            if len(self._idle) == len(self._slots):
                stack.callback(self._close_engine)
            for slot in self._idle:
                stack.callback(slot.close)

    def _close_engine(self) -> None:
        with self._device.current():
            self.engine.close()
