"""Every page of the site: its code runs as it is, and its links lead somewhere."""

import re

import distribute_page
import pages
import pytest

PAGES = sorted(pages.DOCS.rglob("*.md"))
# `test_sharding.py` runs this one, with smaller numbers.
ELSEWHERE = {distribute_page.PAGE.name}


def parameter(path):
    return pytest.param(path, id=path.relative_to(pages.DOCS).as_posix())


WITH_CODE = [
    parameter(path) for path in PAGES if pages.code(path) and path.name not in ELSEWHERE
]


@pytest.mark.slow  # Pages train a few small networks each.
@pytest.mark.parametrize("path", WITH_CODE)
def test_code_of_a_page_runs(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(path)
    printed = capsys.readouterr().out
    assert [each for each in pages.promises(path) if each not in printed] == []


def test_every_block_has_a_language_that_is_run_or_is_none():
    # A block without one would not be run, and nobody would notice.
    known = {"python", "bash", "console", "text"}
    found = {each for path in PAGES for each, _ in pages.blocks(path)}
    assert found <= known


def test_links_of_the_readme_lead_to_files():
    text = (pages.ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 20
    assert [each for each in links if not (pages.ROOT / each).exists()] == []


@pytest.mark.parametrize("folder", ["guides", "concepts", "results", "."])
def test_few_sentences_are_long(folder):
    files = [pages.ROOT / "README.md", *(pages.DOCS / folder).glob("*.md")]
    found = [each for path in files for each in pages.sentences(path.read_text())]
    assert len(found) > 100  # the pages were read
    long = [each for each in found if len(each.split()) > 30]
    assert len(long) < 0.05 * len(found), long
