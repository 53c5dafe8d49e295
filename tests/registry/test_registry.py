"""The registry: components by name, in-process plugins, collisions, strangers that are broken."""

from __future__ import annotations

import importlib.metadata
import types
from dataclasses import dataclass, replace

import pytest
import torch

import fixedpoint as fp
from fixedpoint.core.options import OptionError, option
from fixedpoint.registry import Component, Registry, RegistryError, UnknownComponentError, hookimpl
from fixedpoint.registry import registry as process_registry


@dataclass(frozen=True)
class Halver(fp.Picard):
    """A solver of this test."""

    factor: float = option(0.5, gt=0.0, help="a factor")


@pytest.fixture
def registry() -> Registry:
    """The library's own components and nobody else's."""
    return Registry(discover=False)


class HalverPlugin:
    @hookimpl
    def fixedpoint_solvers(self):
        return [Component("halver", Halver, "halves", ("Nobody 2020",))]


class Thief:
    @hookimpl
    def fixedpoint_solvers(self):
        return [Component("halver-too", Halver), Component("anderson", Halver)]


def test_the_librarys_own_components_are_there_and_load(registry):
    assert set(registry.components("solver")) == {
        "aitken",
        "anderson",
        "anderson-type1",
        "auto",
        "broyden",
        "block-secant",
        "chain",
        "damped",
        "deq-ddim",
        "krylov",
        "newton",
        "newton-krylov",
        "parareal",
        "picard",
        "polyalgorithm",
        "restarted",
        "roots",
        "serial",
        "squarem",
        "trust-region",
    }
    assert set(registry.components("gradient")) == {
        *("chain-adjoint", "checkpointed-unrolled", "implicit", "neumann", "one-step", "phantom", "shine", "unrolled")
    }
    assert registry.broken() == []
    for kind in ("solver", "gradient"):
        for name, component in registry.components(kind).items():
            assert component.name == name
            assert component.summary
            assert component.source == "fixedpoint-solvers"
            assert registry.create(kind, name) == component.load()()


def test_listing_is_sorted_by_name(registry):
    assert list(registry.components("solver")) == sorted(registry.components("solver"))


BUILT = [
    ("anderson", {}, fp.Anderson()),
    ("anderson", {"memory": 3}, fp.Anderson(memory=3)),
    ({"name": "picard", "relaxation": 1}, {}, fp.Picard(relaxation=1.0)),
    (fp.Broyden(memory=2), {}, fp.Broyden(memory=2)),
    (
        {"name": "chain", "accelerator": {"name": "anderson", "memory": 2}, "preconditioner": "zero"},
        {},
        fp.ChainSolver(preconditioner="zero", accelerator=fp.Anderson(memory=2)),
    ),
    ({"name": "chain", "accelerator": "broyden"}, {}, fp.ChainSolver(accelerator=fp.Broyden())),
]


@pytest.mark.parametrize(("spec", "options", "expected"), BUILT, ids=str)
def test_components_are_built_from_names_mappings_and_instances(registry, spec, options, expected):
    kept = dict(spec) if isinstance(spec, dict) else spec
    assert registry.create("solver", spec, **options) == expected
    assert spec == kept


REFUSED = [
    ("andersen", {}, UnknownComponentError, r"unknown solver 'andersen'; did you mean .anderson.\?"),
    (
        "xyzzy",
        {},
        UnknownComponentError,
        "unknown solver 'xyzzy'; known: aitken, anderson, anderson-type1, auto, block-secant",
    ),
    ("anderson", {"memroy": 3}, TypeError, r"Anderson: unknown option 'memroy'; did you mean .memory.\?"),
    ("anderson", {"memory": 0}, OptionError, "Anderson: memory must be at least 1, got 0"),
    ({"memory": 3}, {}, TypeError, r"a solver requires a name, got \{'memory': 3\}"),
    ({"name": "chain", "accelerator": "andersen"}, {}, UnknownComponentError, "unknown solver 'andersen'"),
    ({"name": "chain", "accelerator": {"name": "picard", "x": 1}}, {}, TypeError, "Picard: unknown option 'x'"),
]


@pytest.mark.parametrize(("spec", "options", "kind", "sentence"), REFUSED, ids=str)
def test_mistakes_are_named_with_the_nearest_right_thing(registry, spec, options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        registry.create("solver", spec, **options)


def test_a_plugin_of_this_process_comes_and_goes(registry):
    plugin = HalverPlugin()
    registry.register(plugin, "mine")
    assert registry.get("solver", "halver").source == "mine"
    assert registry.create("solver", "halver", factor=0.25) == Halver(factor=0.25)
    registry.unregister(plugin)
    with pytest.raises(UnknownComponentError, match="unknown solver 'halver'"):
        registry.get("solver", "halver")
    registry.register(plugin, "mine")
    assert "halver" in registry.components("solver")


def test_a_plugin_registered_twice_is_refused_and_stays(registry):
    plugin = HalverPlugin()
    registry.register(plugin, "mine")
    with pytest.raises(RegistryError, match="this plugin is already registered, as 'mine'"):
        registry.register(plugin)
    with pytest.raises(RegistryError, match="a plugin named 'mine' is already registered; pass another name="):
        registry.register(HalverPlugin(), "mine")
    assert registry.get("solver", "halver").source == "mine"
    assert registry.broken() == []


def test_one_component_can_be_added_from_a_notebook(registry):
    registry.add("solver", Component("halver", Halver))
    assert registry.create("solver", "halver") == Halver()
    with pytest.raises(
        RegistryError, match="the solver name 'halver' of this process is already taken by this process"
    ):
        registry.add("solver", Component("halver", Halver))
    assert registry.broken() == []


def test_a_name_taken_twice_is_an_error_naming_both(registry):
    with pytest.raises(RegistryError) as caught:
        registry.register(Thief(), "thief")
    text = str(caught.value)
    assert "the solver name 'anderson' of thief is already taken by fixedpoint-solvers" in text
    assert "fixedpoint.solvers.anderson:Anderson" in text
    assert "test_registry:Halver" in text
    assert registry.create("solver", "anderson") == fp.Anderson()
    assert "halver-too" not in registry.components("solver")
    assert registry.broken() == []


def test_an_alias_is_another_name_for_one_component(registry):
    registry.add("solver", Component("halver", Halver, aliases=("half", "bisector")))
    assert registry.get("solver", "half") is registry.get("solver", "halver")
    assert registry.create("solver", {"name": "bisector", "factor": 0.25}) == Halver(factor=0.25)
    assert "half" not in registry.components("solver")  # so that it is listed once
    assert {"half", "bisector", "halver"} <= set(registry.names("solver"))
    assert list(registry.names("solver")) == sorted(registry.names("solver"))
    with pytest.raises(UnknownComponentError, match=r"did you mean .bisector."):
        registry.get("solver", "bisectors")


@pytest.mark.parametrize(
    ("name", "aliases", "sentence"),
    [
        ("half", (), "the solver name 'half' of this process is already taken by this process .*:Halver"),
        ("other", ("half",), "the solver name 'half' of this process is already taken"),
        ("other", ("anderson",), "the solver name 'anderson' of this process is already taken by fixedpoint-solvers"),
        ("other", ("Half of it",), "must be lower-case letters, digits and single hyphens, got 'Half of it'"),
    ],
)
def test_an_alias_is_taken_like_any_name(registry, name, aliases, sentence):
    registry.add("solver", Component("halver", Halver, aliases=("half",)))
    with pytest.raises(RegistryError, match=sentence):
        registry.add("solver", Component(name, Halver, aliases=aliases))
    assert "other" not in registry.names("solver")
    assert registry.broken() == []


def test_missing_extras_are_named_with_the_command_that_brings_them(registry):
    needy = Component("needy", "nowhere.at_all:Thing", requires=("no_such_module_here",), extra="diffusion")
    registry.add("solver", needy)
    assert needy.missing() == ("no_such_module_here",)
    with pytest.raises(ImportError, match=r"'needy' needs no_such_module_here: pip install .*\[diffusion\]"):
        registry.create("solver", "needy")
    stranger = Component("needy", "nowhere:Thing", requires=("no_such_module_here",))
    assert stranger.install_command() == "pip install no_such_module_here"
    installed = replace(needy, source="fixedpoint-heatlab", version="0.1.0")
    assert installed.install_command() == "pip install 'fixedpoint-heatlab[diffusion]'"
    assert Component("plain", Halver, requires=("torch",)).missing() == ()


def test_solve_takes_registered_names():
    plugin = HalverPlugin()
    process_registry.register(plugin, "mine")
    try:
        solution = fp.solve(torch.cos, torch.ones(1, 2, dtype=torch.float64), solver={"name": "halver", "factor": 0.1})
        assert solution.solver == Halver(factor=0.1)
    finally:
        process_registry.unregister(plugin)


@dataclass
class FakeEntry:
    """What ``importlib.metadata`` would yield for a stranger's package."""

    name: str
    plugin: object
    distribution: str | None = "strange-package"
    value: str = "strange.plugin"

    @property
    def dist(self):
        return None if self.distribution is None else types.SimpleNamespace(name=self.distribution, version="1.2")

    def load(self):
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


@pytest.fixture
def discovered(monkeypatch):
    """A registry that finds the given entry points."""

    def discover(*entries: FakeEntry) -> Registry:
        def entry_points(group):
            assert group == "fixedpoint"
            return list(entries)

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        return Registry()

    return discover


def test_a_strangers_components_carry_their_origin(discovered):
    found = discovered(FakeEntry("strange", HalverPlugin()))
    component = found.get("solver", "halver")
    assert (component.source, component.version) == ("strange-package", "1.2")
    assert found.broken() == []


def test_a_plugin_whose_import_fails_is_a_row_with_the_reason(discovered):
    found = discovered(
        FakeEntry("broken", ModuleNotFoundError("No module named 'cupy'")), FakeEntry("strange", HalverPlugin())
    )
    (row,) = found.broken()
    assert (row.name, row.kind, row.source) == ("broken", "plugin", "strange-package 1.2")
    assert row.reason == "ModuleNotFoundError: No module named 'cupy'"
    assert "halver" in found.components("solver")
    assert "anderson" in found.components("solver")


class RaisingPlugin:
    @hookimpl
    def fixedpoint_solvers(self):
        raise RuntimeError("not\n  today")

    @hookimpl
    def fixedpoint_gradients(self):
        return [Component("still-here", "nowhere:Thing")]


def test_a_hook_that_raises_is_a_row_and_the_others_count(discovered):
    found = discovered(FakeEntry("raising", RaisingPlugin()))
    (row,) = found.broken()
    assert row.reason == "RuntimeError: not today"
    assert "still-here" in found.components("gradient")


def test_an_unknown_name_is_told_which_plugins_cannot_be_used(discovered):
    numpi = FakeEntry("orbits", ModuleNotFoundError("No module named 'numpi'"), "fixedpoint-orbits")
    found = discovered(numpi, FakeEntry("raising", RaisingPlugin()))
    orbits = "the plugin orbits (fixedpoint-orbits 1.2) cannot be used: ModuleNotFoundError: No module named 'numpi'"
    raising = "the solvers of the plugin raising (strange-package 1.2) cannot be used: RuntimeError: not today"
    with pytest.raises(UnknownComponentError) as caught:
        found.create("task", "kepler")
    assert str(caught.value) == f"unknown task 'kepler'; {orbits}; see fixedpoint doctor"
    with pytest.raises(UnknownComponentError) as caught:
        found.get("solver", "andersen")
    assert str(caught.value) == (
        f"unknown solver 'andersen'; did you mean \"anderson\"?; {orbits}; {raising}; see fixedpoint doctor"
    )


UNLOADABLE = [
    (
        "fixedpoint.solvers.anderson:Andersom",
        "fixedpoint.solvers.anderson has no Andersom; did you mean Anderson?",
    ),
    ("fixedpoint.solvers.anderson:Xyzzy", "fixedpoint.solvers.anderson has no Xyzzy"),
    ("fixedpoint.solvers.anderson", "fixedpoint.solvers.anderson is not package.module:Class"),
    ("no_such_place:X", "no_such_place:X: ModuleNotFoundError: No module named 'no_such_place'"),
    ("os:getcwd", "posix:getcwd is no dataclass of options"),
    ("fixedpoint.core.loop:StepSolver", "fixedpoint.core.loop:StepSolver is no dataclass of options"),
]


@pytest.mark.parametrize(("written", "reason"), UNLOADABLE, ids=str)
def test_what_cannot_be_loaded_is_named_with_its_import_string(registry, written, reason):
    component = Component("heavy-ball", written)
    registry.add("solver", component)
    reason = reason.replace("posix:getcwd", "os:getcwd")
    with pytest.raises(ImportError) as caught:
        registry.create("solver", "heavy-ball")
    assert str(caught.value).startswith(f"heavy-ball (this process) cannot be loaded: {reason}")
    (row,) = registry.unloadable()
    assert (row.kind, row.name, row.source) == ("solver", "heavy-ball", "this process")
    assert row.reason.startswith(reason)


def test_what_lacks_an_extra_is_not_loaded(registry):
    registry.add("solver", Component("needy", "nowhere.at_all:Thing", requires=("no_such_module_here",)))
    assert registry.unloadable() == []


@dataclass
class Melting(fp.StepSolver):
    """A solver that is not frozen."""

    factor: float = option(0.5, help="a factor")

    def init(self, f, at):
        return None

    def step(self, f, at, state):
        return at.fz, state


class Undecorated(fp.Picard):
    """A solver whose options are never read."""

    factor: float = option(0.5, help="a factor")


def test_classes_that_are_no_frozen_dataclasses_are_refused(registry):
    registry.add("solver", Component("melting", Melting))
    registry.add("solver", Component("undecorated", Undecorated))
    with pytest.raises(ImportError, match=r"Melting is not frozen; write @dataclass\(frozen=True\) above it"):
        registry.create("solver", "melting")
    sentence = r"has options that are never set \(factor\); write @dataclass\(frozen=True\) above"
    with pytest.raises(ImportError, match=f"Undecorated {sentence} it"):
        registry.create("solver", "undecorated")
    with pytest.raises(TypeError, match=f"Undecorated {sentence} it"):
        Undecorated()
    with pytest.raises(TypeError, match=f"Derived {sentence} its base class Undecorated"):
        type("Derived", (Undecorated,), {})()
    assert type("Plain", (Halver,), {})() is not None  # derived without options of its own: legitimate


@pytest.mark.parametrize("name", ["", "Heavy Ball", "heavy_ball", "-x", "a--b", "run/me"])
def test_a_name_that_cannot_be_typed_is_refused(registry, discovered, name):
    sentence = f"a solver's name must be lower-case letters, digits and single hyphens, got {name!r}"
    with pytest.raises(RegistryError) as caught:
        registry.add("solver", Component(name, "nomod:X"))
    assert str(caught.value) == f"{sentence}; refused nomod:X"
    assert registry.broken() == []

    class Unspeakable:
        @hookimpl
        def fixedpoint_solvers(self):
            return [Component(name, "nomod:X"), Component("halver", Halver)]

    found = discovered(FakeEntry("strange", Unspeakable()))
    (row,) = found.broken()
    assert (row.kind, row.name, row.reason) == ("solver", name, f"{sentence}; refused nomod:X")
    assert "halver" in found.components("solver")
    with pytest.raises(UnknownComponentError, match=f"the solver {name!r} cannot be used: a solver's name must be"):
        found.get("solver", name)


class MistypedPlugin:
    @hookimpl
    def fixedpoint_solvers(self, wrong_argument):
        return []


class WrongThings:
    @hookimpl
    def fixedpoint_solvers(self):
        return [Halver]


@pytest.mark.parametrize("plugin", [MistypedPlugin(), WrongThings()], ids=["signature", "return value"])
def test_a_plugin_that_misunderstands_the_hooks_is_a_row(discovered, plugin):
    found = discovered(FakeEntry("mistaken", plugin))
    (row,) = found.broken()
    assert row.name == "mistaken"
    assert row.reason
    assert "anderson" in found.components("solver")


def test_a_stranger_that_takes_a_name_is_refused_naming_both(discovered):
    found = discovered(FakeEntry("thief", Thief(), distribution="thieves"))
    (row,) = found.broken()
    assert (row.name, row.kind, row.source) == ("anderson", "solver", "thieves 1.2")
    assert "'anderson' of thieves is already taken by fixedpoint-solvers" in row.reason
    assert found.create("solver", "anderson") == fp.Anderson()
    assert found.get("solver", "halver-too").source == "thieves"


def test_an_entry_point_without_a_distribution_is_named_by_its_module(discovered):
    found = discovered(FakeEntry("loose", HalverPlugin(), distribution=None))
    assert found.get("solver", "halver").source == "strange.plugin"


def test_the_order_of_strangers_is_that_of_their_names(discovered):
    first, second = FakeEntry("aaa", HalverPlugin(), "first"), FakeEntry("bbb", HalverPlugin(), "second")
    for entries in ((first, second), (second, first)):
        found = discovered(*entries)
        assert found.get("solver", "halver").source == "first"
        assert len(found.broken()) == 1


def test_nothing_is_discovered_before_something_is_asked_for(monkeypatch):
    def entry_points(group):
        raise AssertionError("too early")

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    Registry()
