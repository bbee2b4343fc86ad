"""Shows the examples of docstrings as code."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Puts a fence around each `>>>` block, which Markdown takes for a quotation."""

    def on_object(self, *, obj, **kwargs):
        """Changes the docstring. Griffe calls this."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                r"```pycon\n\g<0>\n```", obj.docstring.value
            )
