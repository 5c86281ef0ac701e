"""The ladders of a group, the routes through them, and what each task costs on each rung."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from aula.core.clock import Clock
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
        on_change: Callable[[str, Change], None],
    ) -> None:
        self.ladders: dict[str, Ladder] = {}
        self.canaries: list[Route] = []
        self._routes: dict[tuple[Ladder, Task, frozenset[str] | None, bool], Route] = {}
        self._tasks: dict[Route, Task | None] = {}
        self._costs: dict[tuple[str, Task], CostTable] = {}
        for key, capability in {place.ladder: place.capability for place in places}.items():
            workers = {place.name: place.rung.worker for place in places if place.ladder == key}
            names = [place.name for place in places if place.ladder == key]
            ladder = Ladder(names, clock, policy, partial(on_change, key), workers)
            self.ladders[key] = ladder
            for task in TASKS[capability]:
                self._costs[key, task] = CostTable({name: guess(task).table for name in names})
                for name in names:
                    self.learn(key, name, {task: guess(task)})
            canary = Route(f"{key}.canary", ladder, CostTable({name: {1: {1: 1.0}} for name in names}))
            self._tasks[canary] = None
            self.canaries.append(canary)

    def route(self, task: Task, key: str, only: frozenset[str] | None, *, pinned: bool = False) -> Route:
        """Those who share a route share batches, whatever language they speak."""
        ladder = self.ladders[key]
        if only is not None and only >= set(ladder.names):
            only = None
        way = (ladder, task, only, pinned)
        if way not in self._routes:
            route = Route(task.name, ladder, self._costs[key, task], only, pinned)
            self._routes[way] = route
            self._tasks[route] = task
        return self._routes[way]

    def task_of(self, route: Route) -> Task | None:
        """None for a canary's."""
        return self._tasks[route]

    def ladder_of(self, route: Route) -> str:
        return next(one for one, ladder in self.ladders.items() if ladder is route.ladder)

    def learn(self, key: str, name: str, measured: Mapping[Task, Measured]) -> None:
        for task, costs in measured.items():
            self._costs[key, task].replace(name, costs.table, costs.guessed)

    def next_canary(self) -> float:
        return min(ladder.next_canary() for ladder in self.ladders.values())
