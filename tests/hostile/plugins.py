"""Plugins that are broken or hostile: the files of a folder on the path, and the rows that say what is wrong.

Each is a name, the files that make it, and what ``fixedpoint doctor`` must say, as a regular expression on its row
``name, kind, source, reason``; none where the plugin is to work all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PICARD = (
    "from dataclasses import dataclass\nimport fixedpoint as fp\nfrom fixedpoint.core.options import option\n"
    "from fixedpoint.registry import Component, Command, hookimpl\n\n\n"
    "@dataclass(frozen=True)\nclass Own(fp.Picard):\n    '''A solver.'''\n\n\n"
)


def hook(returned: str, kind: str = "solver") -> str:
    """The code of a hook that returns a list."""
    return f"@hookimpl\ndef fixedpoint_{kind}s():\n    return {returned}\n"


GOOD = PICARD + hook("[Component('own-solver', Own, 'a solver')]")


@dataclass(frozen=True)
class Plugin:
    """A folder of plugins, and what must be said of it."""

    name: str
    code: str
    row: str
    entry_points: str = "[fixedpoint]\nodd = odd_plugin\n"
    metadata: str | None = "Metadata-Version: 2.1\nName: odd-plugin\nVersion: 0.1\n"
    further: tuple[tuple[str, str], ...] = ()

    def build(self, folder: Path) -> None:
        """Write the files."""
        files = {"odd_plugin.py": self.code, "odd_plugin-0.1.dist-info/entry_points.txt": self.entry_points}
        if self.metadata is not None:
            files["odd_plugin-0.1.dist-info/METADATA"] = self.metadata
        for name, content in (files | dict(self.further)).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8", errors="surrogateescape")


def second(name: str, module: str, entry: str = "odd") -> tuple[tuple[str, str], ...]:
    """Another distribution with an entry point of that name."""
    return (
        (f"{name}-0.2.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.2\n"),
        (f"{name}-0.2.dist-info/entry_points.txt", f"[fixedpoint]\n{entry} = {module}\n"),
    )


OWN = "odd plugin odd-plugin 0.1 "

AT_IMPORT = [
    Plugin(f"import: {what}", f"{how}\n", OWN + row)
    for what, how, row in (
        ("sys.exit(0)", "import sys\nsys.exit(0)", "SystemExit: 0, which would have ended the program"),
        ("sys.exit(text)", "import sys\nsys.exit('bye')", "SystemExit: bye, which would have ended"),
        ("SystemExit", "raise SystemExit", "SystemExit, which would have ended"),
        ("GeneratorExit", "raise GeneratorExit", "GeneratorExit, which would have ended"),
        ("BaseException", "raise BaseException('x')", "BaseException: x, which would have ended"),
        ("own BaseException", "class Off(BaseException): pass\nraise Off(1)", "Off: 1, which would have ended"),
        ("cancelled", "import asyncio\nraise asyncio.CancelledError", "CancelledError, which would have ended"),
        ("syntax", "def (", "SyntaxError: invalid syntax"),
        ("null bytes", "x = '\0'", "SyntaxError: source code string cannot contain null bytes|ValueError: source code"),
        ("encoding", "# coding: no-such-code", "SyntaxError: .*no-such-code"),
        ("recursion", "def f(): f()\nf()", "RecursionError: maximum recursion depth"),
        ("memory", "raise MemoryError", "MemoryError"),
        ("missing", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("itself", "import odd_plugin\nodd_plugin.nothing", "AttributeError: .*odd_plugin"),
        ("lines", "raise RuntimeError('a\\nb\\n')", "RuntimeError: a b$"),
        ("surrogate", "raise RuntimeError('\\udcff')", r"RuntimeError: \\udcff"),
        ("no text", "class E(Exception):\n def __str__(self): return 1\nraise E", "E, whose message cannot be printed"),
        (
            "text that exits",
            "class E(Exception):\n def __str__(self): raise SystemExit(0)\nraise E",
            "E, whose message cannot be printed",
        ),
        ("queries", "from fixedpoint.registry import registry\nregistry.names('solver')", "it has no hook"),
    )
]

HOOKS = [
    Plugin(f"hook: {what}", PICARD + how, row)
    for what, how, row in (
        ("none", "", OWN + "it has no hook, so it brings nothing; known: fixedpoint_solvers, "),
        (
            "misspelt",
            hook("[]", "solve"),
            OWN + r"there is no hook fixedpoint_solves; did you mean fixedpoint_solvers\?",
        ),
        (
            "unmarked, misspelt",
            "def fixedpoint_solver():\n    return []",
            OWN + "there is no hook fixedpoint_solver; did",
        ),
        (
            "of no library",
            "@hookimpl\ndef on_start():\n    pass",
            OWN + "there is no hook on_start; known: fixedpoint_",
        ),
        (
            "unmarked event",
            "def fixedpoint_round(cell, round, running, relative_error):\n    pass",
            OWN + "fixedpoint_round is not marked with @hookimpl, so it is never called",
        ),
        ("value", "fixedpoint_solvers = 3", OWN + "fixedpoint_solvers must be a function, got int"),
        ("argument", "@hookimpl\ndef fixedpoint_solvers(x):\n    return []", OWN + "PluginValidationError: .*'x'"),
        ("exits", "import sys\n" + hook("sys.exit(0)"), "odd solvers odd-plugin 0.1 SystemExit: 0, which would"),
        ("raises", hook("1 / 0"), "odd solvers odd-plugin 0.1 ZeroDivisionError: division by zero"),
        ("none returned", hook("None"), "odd solvers odd-plugin 0.1 TypeError: 'NoneType' object is not iterable"),
        ("number", hook("[7]"), "odd solvers odd-plugin 0.1 fixedpoint_solvers must return components, got 7"),
        ("class", hook("[Own]"), "odd solvers odd-plugin 0.1 fixedpoint_solvers must return components, got <class"),
        ("command", hook("[Command('x', 'y:z')]"), "odd solvers .* must return components, got Command"),
        (
            "component",
            hook("[Component('x', 'y:z')]", "command"),
            "odd commands .* must return commands, got Component",
        ),
        (
            "text that exits",
            "class Odd:\n    def __repr__(self):\n        raise SystemExit(0)\n\n\n" + hook("[Odd()]"),
            "odd solvers odd-plugin 0.1 SystemExit: 0",
        ),
    )
]

COMPONENTS = [
    Plugin(f"component: {what}", PICARD + before + hook(f"[Component({how})]"), row)
    for what, how, before, row in (
        ("no name", "None, Own", "", "odd solvers .* is misstated: name must be a string, got None"),
        ("number as name", "5, Own", "", "odd solvers .* name must be a string, got 5"),
        ("name with spaces", "'a b', Own", "", "a b solver .* must be lower-case letters, digits and single hyphens"),
        ("name taken", "'anderson', Own", "", "anderson solver .* is already taken by fixedpoint-solvers"),
        ("summary", "'own', Own, 3", "", "odd solvers .* summary must be a string, got 3"),
        (
            "references",
            "'own', Own, 's', 'Me 2020'",
            "",
            "odd solvers .* references must be a tuple of strings, got 'Me",
        ),
        ("requires", "'own', Own, requires='torch'", "", "odd solvers .* requires must be a tuple of strings"),
        ("requires nothing", "'own', Own, requires=('',)", "", "odd solvers .* requires must be a tuple of strings"),
        ("aliases", "'own', Own, aliases='abc'", "", "odd solvers .* aliases must be a tuple of strings, got 'abc'"),
        ("factory", "'own', 3", "", "odd solvers .* factory must be an import string, a class or a function, got 3"),
        ("no factory", "'own', None", "", "odd solvers .* factory must be an import string, a class"),
        ("empty import string", "'own', ''", "", "own solver odd-plugin 0.1 :?.*ValueError: Empty module name"),
        ("no attribute", "'own', 'odd_plugin:Onw'", "", r"own solver .* odd_plugin has no Onw; did you mean Own\?"),
        ("relative", "'own', '.x:Y'", "", "own solver .* TypeError: the 'package' argument is required"),
        ("no module", "'own', 'nowhere:Y'", "", "own solver .* No module named 'nowhere'"),
        ("function", "'own', 'os:getcwd'", "", "own solver .* is no dataclass of options"),
        ("partial", "'own', __import__('functools').partial(Own)", "", "own solver .* functools.* is no dataclass of"),
        ("instance", "'own', Own()", "", "odd solvers .* factory must be an import string, a class"),
        (
            "other kind",
            "'own', 'fixedpoint.gradients.implicit:Implicit'",
            "",
            "is no solver: it is not derived from Sol",
        ),
        (
            "module that exits",
            "'own', 'odd_exit:Own'",
            "",
            "own solver .* odd_exit:Own: SystemExit: 0, which would have ended the program",
        ),
        (
            "type of an option",
            "'own', Two",
            "@dataclass(frozen=True)\nclass Two(fp.Picard):\n    x: 'Nowhere' = option(1, help='h')\n\n\n",
            "own solver .* has options whose types cannot be read: NameError: name 'Nowhere'",
        ),
        (
            "needs",
            "'own', Two",
            "@dataclass(frozen=True)\nclass Two(fp.Picard):\n    needs = 'chain'\n\n\n",
            "own solver .* must have a frozenset of names as needs, got 'chain'",
        ),
        (
            "class that exits",
            "'own', Two",
            "class Meta(type(fp.Picard)):\n    def __getattribute__(cls, name):\n"
            "        if name == '__dataclass_params__':\n            raise SystemExit(0)\n"
            "        return super().__getattribute__(name)\n\n\nclass Two(fp.Picard, metaclass=Meta):\n    pass\n\n\n",
            "own solver .* cannot be used: SystemExit: 0",
        ),
    )
]
COMPONENTS = [
    Plugin(each.name, each.code, each.row, further=(("odd_exit.py", "import sys\nsys.exit(0)\n"),))
    for each in COMPONENTS
]

ENTRY_POINTS = [
    Plugin("entry point: no module", GOOD, "odd plugin .* No module named 'nowhere'", "[fixedpoint]\nodd = nowhere\n"),
    Plugin("entry point: no attribute", GOOD, "odd plugin .* no attribute 'x'", "[fixedpoint]\nodd = odd_plugin:x\n"),
    Plugin("entry point: no value", GOOD, "odd plugin .*", "[fixedpoint]\nodd =\n"),
    Plugin("entry point: spaces", GOOD, "odd plugin .*", "[fixedpoint]\nodd = a b c\n"),
    Plugin("entry point: no equals sign", GOOD, "odd-plugin plugin .*cannot be read", "[fixedpoint]\nodd_plugin\n"),
    Plugin("entry point: none", GOOD, "odd plugin .* it has no hook", "[fixedpoint]\nodd = odd_plugin:__doc__\n"),
    Plugin("entry point: number", GOOD, "odd plugin .* it has no hook", "[fixedpoint]\nodd = sys:maxsize\n"),
    Plugin("entry point: list", GOOD, "odd plugin .* TypeError: unhashable", "[fixedpoint]\nodd = sys:path\n"),
    Plugin(
        "entry point: twice",
        GOOD,
        "again plugin odd-plugin 0.1 it is the plugin odd-plugin: a-first, which is there already",
        "[fixedpoint]\na-first = odd_plugin\nagain = odd_plugin\n",
    ),
    Plugin(
        "entry point: one name for two of a distribution",
        GOOD,
        "odd plugin odd-plugin 0.1 odd-plugin has this entry point twice; that of odd_plugin is used",
        "[fixedpoint]\nodd = odd_plugin\nodd = os\n",
    ),
    Plugin("metadata: none", GOOD, "", metadata=None),
    Plugin("metadata: empty", GOOD, "", metadata=""),
    Plugin("metadata: no version", GOOD, "", metadata="Metadata-Version: 2.1\nName: odd-plugin\n"),
    Plugin("metadata: not UTF-8", GOOD, "", metadata="Metadata-Version: 2.1\nName: odd\udcff\nVersion: 1\n"),
    Plugin("two distributions, one name", GOOD, "odd plugin other .* it has no hook", further=second("other", "os")),
    Plugin(
        "two distributions, one module",
        GOOD,
        "odd plugin other 0.2 it is the plugin odd-plugin: odd, which is there already",
        further=second("other", "odd_plugin"),
    ),
    Plugin(
        "two distributions, one name, both good",
        GOOD,
        "",
        further=(
            *second("other", "other_plugin"),
            ("other_plugin.py", PICARD + hook("[Component('other-solver', Own)]")),
        ),
    ),
    Plugin("good", GOOD, ""),
    Plugin("prints", "import os\nprint('{')\nos.write(1, b'[')\nos.system('echo ]')\n" + GOOD, ""),
]

PLUGINS = [*AT_IMPORT, *HOOKS, *COMPONENTS, *ENTRY_POINTS]
