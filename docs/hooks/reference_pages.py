"""Makes the reference: a page for each part of the package, with its public names.

The names are those of `__all__` in `keras_pedcc` and in its subpackages. They are read
and not imported, so that the site builds without Keras.
"""

import ast
import pathlib

from mkdocs.structure.files import File

PACKAGE = pathlib.Path(__file__).parents[2] / "keras_pedcc"
INTRODUCTIONS = {
    "centroids": "How class centroids are made, measured, compared and kept.",
    "data": "Batches of classes, and images from folders and tables.",
    "evaluation": "What a trained network is worth: features, verification, search.",
    "layers": "Classification heads. Each takes features `(batch, dim)`.",
    "losses": "Every loss exists as a class for `compile` and as a function.",
    "scores": "How a loss gets its cosines, and how classes are searched and divided.",
    "training": "The model, its callbacks and optimizer, and the loading of files.",
}


def on_files(files, config):
    """Adds the pages. MkDocs calls this."""
    for room, names in sorted(names_by_room().items()):
        content = page(room, names)
        path = f"reference/{room}.md"
        files.append(File.generated(config, path, content=content))
    return files


def page(room, names):
    """Markdown of one page, filled in by mkdocstrings."""
    parts = [f"# {room.capitalize()}", INTRODUCTIONS.get(room, "")]
    parts += [f"::: {name}" for name in sorted(names, key=in_order)]
    return "\n\n".join(parts) + "\n"


def in_order(name):
    """Sorts classes before functions, and names by letter."""
    short = name.rsplit(".", 1)[1]
    return short[0].islower(), short.lower()


def names_by_room():
    """Full public names by the part of the package that they are imported from.

    A module that is public as a whole is a name and a page of its own.
    """
    rooms = {}
    for name, module in exported(PACKAGE / "__init__.py").items():
        room = name if module == PACKAGE.name else module.split(".")[1]
        rooms.setdefault(room, {})[name] = f"keras_pedcc.{name}"
    for path in PACKAGE.glob("*/__init__.py"):
        room = path.parent.name
        for name in exported(path):
            full = f"keras_pedcc.{room}.{name}"
            rooms.setdefault(room, {}).setdefault(name, full)
    return {room: list(names.values()) for room, names in rooms.items()}


def exported(path):
    """Names in `__all__` of a file, with the module that each is imported from."""
    imported, public = {}, []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            imported |= {each.asname or each.name: node.module for each in node.names}
        elif isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            public = ast.literal_eval(node.value)
    return {name: imported[name] for name in public}
