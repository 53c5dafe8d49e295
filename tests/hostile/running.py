"""Plugins that do harm while a run goes on: their code, and what ``fixedpoint run`` must say and return."""

from __future__ import annotations

from dataclasses import dataclass

from plugins import PICARD

TASK = PICARD + (
    "import sys\nimport torch\nfrom collections.abc import Mapping\nfrom fixedpoint.plugin import *\n\n\n"
    "@dataclass(frozen=True)\nclass Odd(SolveTask):\n    '''A task.'''\n\n"
    "    def problem(self, seed):\n        {problem}\n"
    "        return FunctionProblem(torch.cos, torch.ones(2, 3), rows='independent')\n\n"
    "    def judge(self, problem, solution, context):\n        {judge}\n        return Judgement({{'m': 1.0}})\n\n"
    "    {more}\n\n\n"
    "@hookimpl\ndef fixedpoint_tasks():\n    return [Component('odd', Odd)]\n\n\n{hooks}\n"
)


def task(problem: str = "pass", judge: str = "pass", more: str = "", hooks: str = "") -> str:
    """The code of a plugin with a task and hooks."""
    return TASK.format(problem=problem, judge=judge, more=more, hooks=hooks)


def event(name: str, arguments: str, does: str) -> str:
    """The code of a hook of an event."""
    return f"@hookimpl\ndef fixedpoint_{name}({arguments}):\n    {does}\n"


EXECUTOR = (
    "@dataclass(frozen=True)\nclass Bad(Executor):\n    def run(self, cells, work):\n        {does}\n\n\n"
    "@hookimpl\ndef fixedpoint_executors():\n    return [Component('bad', Bad)]\n"
)
ROUND = "cell, round, running, relative_error"
STUDY = "tasks: [odd]\nsolvers: [picard, anderson]\n"
OWN_SOLVER = (
    "@dataclass(frozen=True)\nclass Exits(fp.Picard):\n    {body}\n\n\n"
    "@hookimpl\ndef fixedpoint_solvers():\n    return [Component('exits', Exits)]\n"
)


@dataclass(frozen=True)
class Running:
    """A plugin, the run file, the exit status of the run, what it says, and how many of its two cells are all right."""

    name: str
    code: str
    status: int
    said: str
    good: int = 2
    study: str = STUDY


ENDED = "would have ended the program"

RUNNING = [
    Running("task: problem exits", task("sys.exit(0)"), 1, f"odd / picard.*SystemExit: 0, which {ENDED}", 0),
    Running("task: judge exits", task(judge="sys.exit(0)"), 1, f"odd / picard.*SystemExit: 0, which {ENDED}", 0),
    Running("task: BaseException", task("raise BaseException('x')"), 1, f"BaseException: x, which {ENDED}", 0),
    Running("task: GeneratorExit", task("raise GeneratorExit"), 1, f"GeneratorExit, which {ENDED}", 0),
    Running("task: prints", task("print('{')", "import os; os.write(1, b'[')"), 0, ""),
    Running(
        "task: notes exit",
        task(more="def notes(self):\n        sys.exit(0)").replace("(SolveTask)", "(SolveTask, HasNotes)"),
        1,
        f"the notes of the task odd cannot be had: SystemExit: 0, which {ENDED}",
        0,
    ),
    Running(
        "task: check exits",
        task(more="def check(self):\n        sys.exit(0)"),
        2,
        f"tasks.*SystemExit: 0, which {ENDED}",
        0,
    ),
    Running(
        "task: provides",
        task(more="provides = property(lambda self: sys.exit(0))"),
        2,
        f"the task odd of odd-plugin 0.1 cannot be used: provides cannot be had: SystemExit: 0, which {ENDED}",
        0,
    ),
    Running(
        "task: provides a list",
        task(more="provides = property(lambda self: ['jvp'])"),
        2,
        "cannot be used: provides must be a frozenset of names, got .'jvp'.",
        0,
    ),
    *(
        Running(
            f"hook: {name} {what}",
            task(hooks=event(name, arguments, does)),
            0,
            f"the hook fixedpoint_{name} of the plugin odd-plugin: odd raised {said}",
        )
        for name, arguments in (
            ("run_started", "folder, cells"),
            ("round", ROUND),
            ("cell_finished", "record"),
            ("run_finished", "folder"),
        )
        for what, does, said in (
            ("exits", "sys.exit(0)", f"SystemExit: 0, which {ENDED}"),
            ("raises", "raise ValueError('no')", "ValueError: no"),
        )
    ),
    Running(
        "executor: exits",
        task(hooks=EXECUTOR.format(does="sys.exit(0)")),
        1,
        f"the executor Bad raised SystemExit: 0, which {ENDED}",
        0,
        STUDY + "executor: bad\n",
    ),
    Running(
        "executor: raises after a cell",
        task(hooks=EXECUTOR.format(does="yield work(cells[0]); raise ValueError('no')")),
        1,
        "the executor Bad raised ValueError: no(.|\n)*odd / anderson.*: not run yet",
        1,
        STUDY + "executor: bad\n",
    ),
    Running(
        "executor: nothing",
        task(hooks=EXECUTOR.format(does="return None")),
        1,
        "the executor Bad raised TypeError: 'NoneType' object is not iterable",
        0,
        STUDY + "executor: bad\n",
    ),
    Running(
        "executor: other things",
        task(hooks=EXECUTOR.format(does="yield 7")),
        1,
        "the executor Bad raised TypeError: int is no result of a cell of this run",
        0,
        STUDY + "executor: bad\n",
    ),
    Running(
        "executor: records of no cell",
        task(hooks=EXECUTOR.format(does="yield Finished(7)")),
        1,
        "the executor Bad raised TypeError: Finished is no result of a cell of this run",
        0,
        STUDY + "executor: bad\n",
    ),
    Running(
        "executor: a list",
        task(hooks=EXECUTOR.format(does="return [work(cell) for cell in cells]")),
        0,
        "",
        2,
        STUDY + "executor: bad\n",
    ),
    Running(
        "solver: exits",
        task(hooks=OWN_SOLVER.format(body="def step(self, f, at, state):\n        sys.exit(0)")),
        1,
        f"odd / exits.*SystemExit: 0, which {ENDED}",
        1,
        "tasks: [odd]\nsolvers: [picard, exits]\n",
    ),
    Running(
        "solver: option of a type that pydantic does not know",
        task(hooks=OWN_SOLVER.format(body="x: 'torch.Tensor | None' = option(None, help='h')")),
        0,
        "",
        2,
        "tasks: [odd]\nsolvers: [picard, exits]\n",
    ),
    Running(
        "solver: default that exits",
        task(hooks=OWN_SOLVER.format(body="x: int = option(factory=lambda: sys.exit(0), help='h')")),
        2,
        f"the solver exits of odd-plugin 0.1 cannot be used: SystemExit: 0, which {ENDED}|SystemExit: 0, which {ENDED}",
        0,
        "tasks: [odd]\nsolvers: [picard, exits]\n",
    ),
]
