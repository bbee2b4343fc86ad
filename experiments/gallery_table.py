"""The table of `benchmarks/gallery.py` in `docs/results/upgrade.md`."""

import feature_heads

NAMES = {"lancedb": "LanceDB, a folder", "postgresql": "PostgreSQL with pgvector"}


def table(result):
    """Markdown: exact search and the approximate index of each store."""
    head = ["store", "search", "built in", "size", "a query, median"]
    head += ["recall@1", "recall of the ten nearest"]
    lines = []
    for row in result["rows"]:
        name = NAMES[row["store"]]
        enrolled = f"{row['enrol_seconds']:.0f} s to enrol"
        lines.append(_line(name, "exact", enrolled, row["bytes"], row["exact"]))
        if "indexed" in row:
            built, size = f"{row['index_seconds']:.0f} s", row["bytes_with_index"]
            lines.append(_line(name, "approximate", built, size, row["indexed"]))
    return feature_heads.markdown(head, lines) + conditions(result)


def _line(name, search, built, size, found):
    recalls = [f"{found[each]:.1%}" for each in ("recall_at_1", "recall")]
    milliseconds = f"{found['milliseconds']:.1f} ms"
    return [name, search, built, f"{size / 1e6:.0f} MB", milliseconds, *recalls]


def conditions(result):
    """A paragraph: command, versions, hardware, and how busy the machine was."""
    made = result["environment"]
    versions = ", ".join(f"{n} {made[n]}" for n in ("lancedb", "psycopg", "pgvector"))
    return (
        f"\nMade by `{result['command']}` on one CPU core ({made['cpu']}), {versions}. "
        f"A load of {result['load_before']:g} to {result['load_after']:g} lay on the "
        "two cores of the machine, so the times are upper bounds.\n"
    )
