"""The reader of pages notices what a page gets wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_pages import Reader, blocks

GOOD = """
```python title="within/seven.py"
SEVEN = 7
```

```console
$ cd within
$ python -c "import seven; print(seven.SEVEN, 'and', 8)"   # a comment
7 and ...
$ ls nowhere \\
>   2> /dev/null
$ echo $?
2
```

```console
$ pwd
.../within
```

```python
print("many", "words")
```

```text
many   wo...
```
"""


def follow(text: str, folder: Path, **options: dict[str, str]) -> None:
    page = folder / "page.md"
    page.write_text(text)
    Reader(folder, **options).follow(str(page))


def test_a_good_page(tmp_path: Path) -> None:
    follow(GOOD, tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("7 and ...", "6 and ...", "what came:\n7 and 8"),
        ("```text\nmany   wo...", "```text\nfew", "what came:\nmany words"),
        ("$ echo $?\n2\n", "", "ended with status 2"),
        ("$ echo $?\n2\n", "$ echo $?\n1\n", "what came:\n2"),
        ('```python\nprint("many", "words")\n```\n', "", "nobody carries out this block"),
        (' title="within/seven.py"', "", "No such file|ended early|ended with status"),
        ("```python\n", "```yaml\n", "nobody carries out this block"),
        ("```python\n", "```python linenums\n", "a fence of another kind"),
        ("$ pwd\n", "pwd\n", "begins with a command"),
        ("```text\nmany   wo...\n```", "```text\nmany   wo...\n", "never closed"),
    ],
)
def test_a_page_that_is_wrong(right: str, wrong: str, said: str, tmp_path: Path) -> None:
    assert right in GOOD
    with pytest.raises(AssertionError, match=said):
        follow(GOOD.replace(right, wrong), tmp_path)


def test_what_is_left_out_and_what_is_put_in_its_place(tmp_path: Path) -> None:
    page = "```console\n$ rm -r /nowhere\n$ deploy --now\ndone\n```\n"
    follow(page, tmp_path, left_out={"rm -r /nowhere": "why"}, in_place_of={"deploy --now": "echo done"})
    with pytest.raises(AssertionError, match="ended with status"):
        follow(page, tmp_path, in_place_of={"deploy --now": "echo done"})


def test_a_traceback_leads_to_the_line_of_the_page(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        follow("```python\nx = 1\nx / 0\n```\n", tmp_path)
    assert caught.traceback[-1].lineno + 1 == 3


def test_blocks_know_where_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert [block.line for block in blocks(str(page))] == [2, 6, 16, 21, 25]
