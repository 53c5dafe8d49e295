"""Every page is carried out as a reader would: files written, commands typed, code executed, output compared."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT, Reader, blocks

GUIDES = (
    "docs/how-to/write-a-solver.md",
    "docs/how-to/write-a-gradient-estimator.md",
    "docs/how-to/write-a-task.md",
    "docs/how-to/write-a-plugin-package.md",
)
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/tutorials/first-solve.md",
    "docs/tutorials/diffusion-chain.md",
    "docs/tutorials/your-pipeline.md",
    "docs/how-to/states.md",
    "docs/how-to/your-own-model.md",
    "docs/concepts/fixed-points.md",
    "docs/concepts/chains.md",
    "docs/concepts/glossary.md",
    *GUIDES,
    "docs/how-to/write-a-chain.md",
    "docs/reference/command-line.md",
    "docs/reference/run-files.md",
    "docs/how-to/torchdeq.md",
    "docs/how-to/which-solver.md",
    "docs/how-to/gradients.md",
    "docs/how-to/sequences.md",
    "docs/how-to/deep-equilibrium.md",
    "docs/how-to/inversion.md",
    "docs/how-to/sample-a-pipeline.md",
    "docs/how-to/pipeline-inversion.md",
    "docs/how-to/modular-diffusers.md",
)
PAGES_THERE_ARE = [path for path in ROOT.glob("docs/**/*.md") if "assets" not in path.parts]
LEFT_OUT = {
    "make demo": "installs from the network; the demo itself is run from the wheel in tests/architecture",
    'pip install ".[report,diffusion]"': "installs from the network; tests/architecture installs the wheel",
    "pip install -e '.[testing]'": "installs from the network; the tests have pytest already",
    "make test": "would run these tests in themselves",
    "source .venv/bin/activate": "the reader has the environment of the tests on the path already",
    "fixedpoint invert shirt.png --class shirt --edit-class dress": "requires a picture; the page of commands has some",
    "fixedpoint invert photos --class bag": "requires pictures; the page of the command line has some",
    "fixedpoint run configs/demo.yaml": "takes a minute; run with fewer steps from the wheel in tests/architecture",
}
# The same without the network: the metadata goes to a folder, the modules stay where they are written.
EDITABLE_OFFLINE = (
    "{python} -m pip install --quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    " --target {site} . && rm -r {site}/heatlab && export PYTHONPATH={site}:$PWD"
)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> Reader:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    before = set(sys.modules)
    yield Reader(
        home,
        left_out=LEFT_OUT,
        in_place_of={"pip install -e .": EDITABLE_OFFLINE.format(python=sys.executable, site=tmp_path / "site")},
        programs=programs,
    )
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(home)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, reader: Reader) -> None:
    if page in GUIDES:  # what a reader of the guides before has written
        for earlier in GUIDES[: GUIDES.index(page)]:
            for block in blocks(earlier):
                if block.title:
                    reader.write(block)
    reader.follow(page)


def test_what_is_left_out_stands_in_a_page() -> None:
    shown = "".join(block.text for page in PAGES for block in blocks(page))
    assert [command for command in LEFT_OUT if f"$ {command}" not in shown] == []


@pytest.mark.parametrize("page", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in PAGES_THERE_ARE)])
def test_every_page_is_carried_out_or_has_nothing_to_carry_out(page: str) -> None:
    assert page in PAGES or not blocks(page)


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit(page: str) -> None:
    for block in blocks(page):
        for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
            widest = 90 if block.language == "python" and page in GUIDES else 120
            assert len(line) <= widest, f"{page}:{number}"
    for number, line in enumerate((ROOT / page).read_text().splitlines(), start=1):
        assert len(line) <= 120 or line.startswith("|"), f"{page}:{number}"
        assert not re.search(r"\s$", line), f"{page}:{number} ends in white space"
