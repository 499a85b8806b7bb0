"""The engine: run an ordered program of tasks on streams and shared links.

The only file that imports SimPy. Every task is one timeout with a callback, not a process.
"""

from math import inf, isfinite

from simpy import Environment
from simpy.events import Timeout

from simulator.errors import ProgramError
from simulator.fair_share import Network
from simulator.program import Program, Task
from simulator.timeline import Span, Timeline

_MAX_NAMED = 8
"""Tasks that an error message names at most [1]."""


def simulate(program: Program) -> Timeline:
    """Run a program and return what happened when.

    A stream runs its tasks in program order; a task starts when its stream is free and all it
    depends on have ended. Tasks with links then move their bytes over links shared fairly.

    Parameters
    ----------
    program : Program
        Tasks in stream order, links, resting memory.

    Returns
    -------
    Timeline
        One span per task, in program order, and the memory of each rank over time. Integer
        durations give integer times.

    Raises
    ------
    ProgramError
        If a task names an unknown task, rank or link, has a negative duration, or waits for
        itself through others.

    Notes
    -----
    Start times are sums and maxima of durations, so a shorter task never makes the step longer as
    long as no link is shared (a greedy order would break this: R. L. Graham, SIAM J. Appl. Math.
    17, 1969). Shared links follow max-min fairness (D. Bertsekas, R. Gallager, "Data networks",
    section 6.5.2).

    Examples
    --------
    >>> tasks = (
    ...     Task(name="a", rank=0, stream="compute", kind="compute", duration_s=2),
    ...     Task(name="b", rank=1, stream="compute", kind="compute", duration_s=3, depends_on=(0,)),
    ... )
    >>> [(span.start_s, span.end_s) for span in simulate(Program(tasks=tasks, num_ranks=2)).spans]
    [(0, 2), (2, 5)]
    """
    _check_program(program)
    run = _Run(program)
    run.start()
    if run.num_left:
        raise ProgramError(_stuck_message(program, run.ends))
    return run.timeline()


class _Run:
    """One run: counts of what each task still waits for, and its times."""

    __slots__ = (
        "ends", "env", "memory", "network", "num_left", "program", "starts", "used", "waiters",
        "waits",
    )  # fmt: skip

    def __init__(self, program: Program) -> None:
        num_tasks = len(program.tasks)
        self.program = program
        self.env = Environment()
        self.network = Network(self.env, program.link_bandwidth_bytes_per_s, self._finish)
        self.starts: list[float] = [0.0] * num_tasks
        self.ends: list[float | None] = [None] * num_tasks
        self.num_left = num_tasks
        self.waits, self.waiters = _waits(program.tasks)
        resting = program.resting_memory_bytes or (0.0,) * program.num_ranks
        self.used = list(resting)
        self.memory: list[list[tuple[float, float]]] = [[(0, used)] for used in resting]

    def start(self) -> None:
        """Start the tasks that wait for nothing, then run until nothing happens."""
        for index in [index for index, count in enumerate(self.waits) if not count]:
            self._begin(index)
        self.env.run()

    def _begin(self, index: int) -> None:
        """Start a task now."""
        task = self.program.tasks[index]
        env = self.env
        self.starts[index] = env.now
        if task.memory_at_start_bytes:
            self._change_memory(task.rank, task.memory_at_start_bytes)
        timeout = Timeout(env, task.duration_s, index)
        callback = self._transfer if task.links and task.num_bytes > 0 else self._on_timeout
        timeout.callbacks.append(callback)

    def _on_timeout(self, event: Timeout) -> None:
        """End the task of a timeout."""
        self._finish(event._value)

    def _transfer(self, event: Timeout) -> None:
        """Latency is over: move the bytes."""
        task = self.program.tasks[event._value]
        self.network.add(event._value, task.links, task.num_bytes)

    def _finish(self, index: int) -> None:
        """End a task now and start those that waited for it alone."""
        task = self.program.tasks[index]
        self.ends[index] = self.env.now
        self.num_left -= 1
        if task.memory_at_end_bytes:
            self._change_memory(task.rank, task.memory_at_end_bytes)
        waits = self.waits
        for waiter in self.waiters[index]:
            waits[waiter] -= 1
            if not waits[waiter]:
                self._begin(waiter)

    def _change_memory(self, rank: int, num_bytes: float) -> None:
        """Note a change of a rank's memory."""
        self.used[rank] += num_bytes
        self.memory[rank].append((self.env.now, self.used[rank]))

    def timeline(self) -> Timeline:
        """Return the spans in program order."""
        spans = tuple(
            Span(
                name=task.name, rank=task.rank, stream=task.stream, kind=task.kind,
                category=task.category, start_s=start, end_s=inf if end is None else end,
                stage=task.stage, microbatch=task.microbatch, num_bytes=task.num_bytes,
            )
            for task, start, end in zip(self.program.tasks, self.starts, self.ends, strict=True)
        )  # fmt: skip
        memory = tuple(tuple(points) for points in self.memory)
        return Timeline(spans=spans, num_ranks=self.program.num_ranks, memory=memory)


def _waits(tasks: tuple[Task, ...]) -> tuple[list[int], list[list[int]]]:
    """Return how many tasks each waits for, and which wait for it; a stream's order counts too."""
    waits = [0] * len(tasks)
    waiters: list[list[int]] = [[] for _ in tasks]
    last: dict[tuple[int, str], int] = {}
    for index, task in enumerate(tasks):
        stream = (task.rank, task.stream)
        before = last.get(stream)
        last[stream] = index
        if before is not None:
            waits[index] += 1
            waiters[before].append(index)
        for other in task.depends_on:
            waits[index] += 1
            waiters[other].append(index)
    return waits, waiters


def _check_program(program: Program) -> None:
    """Raise if a task refers to what does not exist."""
    num_tasks, num_ranks = len(program.tasks), program.num_ranks
    if len(program.resting_memory_bytes) not in {0, num_ranks}:
        msg = (
            f"program: resting memory for {len(program.resting_memory_bytes)} ranks, "
            f"expected {num_ranks} or none"
        )
        raise ProgramError(msg)
    for name, rate in program.link_bandwidth_bytes_per_s.items():
        if not rate > 0:
            msg = f"program: link {name!r} has {rate} B/s, expected more than 0"
            raise ProgramError(msg)
    for task in program.tasks:
        problem = _task_problem(task, num_tasks, num_ranks, program)
        if problem:
            msg = f"program: task {task.name!r} {problem}"
            raise ProgramError(msg)


def _task_problem(task: Task, num_tasks: int, num_ranks: int, program: Program) -> str:
    """Return what is wrong with a task, or nothing."""
    if not 0 <= task.rank < num_ranks:
        return f"is on rank {task.rank}, expected 0 to {num_ranks - 1}"
    if not (task.duration_s >= 0 and isfinite(task.duration_s)):
        return f"lasts {task.duration_s} s, expected a finite number of at least 0"
    for other in task.depends_on:
        if not 0 <= other < num_tasks:
            return f"depends on position {other}, expected 0 to {num_tasks - 1}"
    for link in task.links:
        if link not in program.link_bandwidth_bytes_per_s:
            return f"uses link {link!r}, which the program does not define"
    return ""


def _stuck_message(program: Program, ends: list[float | None]) -> str:
    """Return an error that names a cycle among the tasks that never ran."""
    tasks = program.tasks
    last: dict[tuple[int, str], int] = {}
    waits_for: dict[int, int] = {}
    for index, task in enumerate(tasks):
        before = last.get((task.rank, task.stream))
        last[task.rank, task.stream] = index
        if ends[index] is None:
            others = (*task.depends_on, *(() if before is None else (before,)))
            waits_for[index] = next(other for other in others if ends[other] is None)
    path: list[int] = [next(iter(waits_for))]
    while waits_for[path[-1]] not in path:
        path.append(waits_for[path[-1]])
    cycle = path[path.index(waits_for[path[-1]]) :]
    named = [f"{tasks[index].name!r} (rank {tasks[index].rank})" for index in cycle[:_MAX_NAMED]]
    more = f" and {len(cycle) - _MAX_NAMED} more" if len(cycle) > _MAX_NAMED else ""
    return (
        f"program: {len(waits_for)} of {len(tasks)} tasks never start; "
        f"these wait for each other in a cycle: {' <- '.join(named)}{more}; "
        "change their dependencies or their order in the streams"
    )
