"""The code on the pages of README and site."""

import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# A line of a block that says what the `print` above it shows.
PROMISE = re.compile(r"^# ([\[{].*|-?[\d. ]+)$", re.MULTILINE)


def blocks(path):
    """Language and text of each block of a page."""
    found = FENCE.findall(path.read_text())
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def code(path):
    """Its blocks of Python."""
    return [text for language, text in blocks(path) if language == "python"]


def run(path):
    """Runs them in order, in one namespace, which it returns."""
    scope = {"__name__": "__main__"}
    for number, text in enumerate(code(path), 1):
        exec(compile(text, f"{path.name}, block {number}", "exec"), scope)
    return scope


def promises(path):
    """What a page says that its code prints."""
    return PROMISE.findall("\n".join(code(path)))


def sentences(text):
    """Sentences of a page of Markdown, without blocks, tables and headings.

    A piece of code counts as one word.
    """
    text = FENCE.sub("\n", text)
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "\n", text, flags=re.DOTALL)
    text = re.sub(r"^\s*(#|\||!\[|--8<--|---).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^]]*)\](\([^)]*\)|\[[^]]*\])", r"\1", text)
    text = re.sub(r"`[^`]+`|\$[^$]+\$", "Code", text)
    items = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s", text)
    ends = re.compile(r"(?<=[.!?])[\"*)]*\s+(?=[\"*(]*[A-Z0-9])")
    lines = [" ".join(item.split()) for item in items]
    return [each for line in lines for each in ends.split(line) if each]
