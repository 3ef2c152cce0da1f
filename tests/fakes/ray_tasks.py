"""What ``run_jobs`` asks of Ray, in this process: a task runs when its result is taken."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Killed(BaseException):
    """Raised in a task: its worker ends, and the task is started again."""


class FakeRay:
    def __init__(self, **resources: float) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.resources = resources or {"CPU": 2.0}
        self.asked: dict[str, Any] = {}
        self.cancelled: list[Any] = []
        self.stuck = False

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}, {"Alive": False, "Resources": {}}]

    def available_resources(self) -> dict[str, float]:
        return {**self.resources, "memory": 1.0}

    def remote(self, what: Any) -> SimpleNamespace:
        def options(**asked: Any) -> SimpleNamespace:
            if isinstance(what, type):
                return SimpleNamespace(remote=lambda: _Actor(what()))
            self.asked = asked
            return SimpleNamespace(remote=lambda *args: _Task(lambda: what(*args)))

        return SimpleNamespace(options=options)

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], Any]:
        return ([], tasks) if self.stuck else (tasks[-1:], tasks[:-1])

    def get(self, found: Any) -> Any:
        return found.result(self.asked["max_retries"]) if isinstance(found, _Task) else found

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled.append(task)

    def kill(self, actor: Any) -> None:
        self.cancelled.append(actor)


class _Task:
    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def result(self, retries: int) -> Any:
        for _ in range(retries + 1):
            try:
                return self._call()
            except Killed:
                continue
            except Exception as error:
                raise RayTaskError(error) from error
        raise RayError("the worker died unexpectedly")


class _Actor:
    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._real, name))
