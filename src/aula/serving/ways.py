"""The ladders of a group, the routes through them, and what each task costs on each rung."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from aula.core.clock import Clock
from aula.core.types import Capability
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Change, Ladder, Policy
from aula.scheduling.routes import Route
from aula.serving.costs import Measured, guess
from aula.serving.places import Place
from aula.serving.tasks import TASKS, Task


class Ways:
    def __init__(
        self,
        places: Sequence[Place],
        clock: Clock,
        policy: Policy,
        on_change: Callable[[Capability, Change], None],
    ) -> None:
        self.ladders: dict[Capability, Ladder] = {}
        self.canaries: list[Route] = []
        self._routes: dict[tuple[Task, frozenset[str] | None, bool], Route] = {}
        self._tasks: dict[Route, Task | None] = {}
        self._costs: dict[tuple[Capability, Task], CostTable] = {}
        for capability in dict.fromkeys(place.capability for place in places):
            workers = {place.name: place.rung.worker for place in places if place.capability is capability}
            names = [place.name for place in places if place.capability is capability]
            ladder = Ladder(names, clock, policy, partial(on_change, capability), workers)
            self.ladders[capability] = ladder
            for task in TASKS[capability]:
                self._costs[capability, task] = CostTable({name: guess(task).table for name in names})
                for name in names:
                    self.learn(capability, name, {task: guess(task)})
            canary = Route(f"{capability}.canary", ladder, CostTable({name: {1: {1: 1.0}} for name in names}))
            self._tasks[canary] = None
            self.canaries.append(canary)

    def route(self, task: Task, capability: Capability, only: frozenset[str] | None, *, pinned: bool = False) -> Route:
        """Those who share a route share batches, whatever language they speak."""
        ladder = self.ladders[capability]
        if only is not None and only >= set(ladder.names):
            only = None
        key = (task, only, pinned)
        if key not in self._routes:
            route = Route(task.name, ladder, self._costs[capability, task], only, pinned)
            self._routes[key] = route
            self._tasks[route] = task
        return self._routes[key]

    def task_of(self, route: Route) -> Task | None:
        """None for a canary's."""
        return self._tasks[route]

    def capability_of(self, route: Route) -> Capability:
        return next(one for one, ladder in self.ladders.items() if ladder is route.ladder)

    def learn(self, capability: Capability, name: str, measured: Mapping[Task, Measured]) -> None:
        for task, costs in measured.items():
            self._costs[capability, task].replace(name, costs.table, costs.guessed)

    def next_canary(self) -> float:
        return min(ladder.next_canary() for ladder in self.ladders.values())
