"""Where a gallery is kept: in a folder, or in a database server.

A store holds a row for each enrolled image (its name, whose it is, the embedding), and
the fingerprint of the centroids that the embeddings belong to. Search is exact until
`build_index`. A folder is a LanceDB database: no server, safe against a kill, one
writer at a time. `postgresql://...` is PostgreSQL with the pgvector extension, for
several machines. Both have the same methods, so that the code around them is the same.
"""

import json

import numpy as np

import keras_pedcc


def open_store(where, network, create=False):
    """Opens the gallery; raises, before anything is written, unless `network` fits it.

    Args:
        where: Folder, or address that begins with `postgresql://`.
        network: What `keras_pedcc.embedder` returned.
        create: Whether to make a gallery if there is none.
    """
    fingerprint = keras_pedcc.centroid_fingerprint(network)
    kind = PostgresStore if str(where).startswith("postgresql://") else LanceStore
    store = kind(str(where))
    if not store.exists():
        if not create:
            raise FileNotFoundError(f"There is no gallery at {where}. Enrol images.")
        store.create(fingerprint)
    keras_pedcc.check_same_centroids(fingerprint, store.fingerprint())
    return store


class LanceStore:
    """A gallery in a folder. The fingerprint is in the schema, beside the vectors."""

    def __init__(self, folder):
        import lancedb

        self.database = lancedb.connect(folder)

    def exists(self):
        return "gallery" in self.database.list_tables().tables

    def create(self, fingerprint):
        import pyarrow as pa

        vector = pa.list_(pa.float32(), fingerprint["dim"])
        columns = {"image": pa.string(), "label": pa.string(), "vector": vector}
        told = {"centroid_fingerprint": json.dumps(fingerprint)}
        self.database.create_table("gallery", schema=pa.schema(columns, told))

    @property
    def table(self):
        return self.database.open_table("gallery")

    def fingerprint(self):
        """The one kept, or `None`."""
        told = (self.table.schema.metadata or {}).get(b"centroid_fingerprint")
        return json.loads(told) if told else None

    def add(self, images, labels, features):
        """Adds rows; an image that is there already is replaced."""
        import pyarrow as pa

        table, features = self.table, np.asarray(features, "float32")
        vectors = pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
        rows = {"image": list(images), "label": list(labels), "vector": vectors}
        adding = table.merge_insert("image").when_matched_update_all()
        adding.when_not_matched_insert_all().execute(pa.table(rows))

    def remove(self, label):
        """Removes all images of a label."""
        quoted = label.replace("'", "''")
        self.table.delete(f"label = '{quoted}'")

    def count(self):
        return self.table.count_rows()

    def nearest(self, features, k=1):
        """Yields `(image, label, cosine)` of the k nearest, for each feature."""
        table = self.table
        for feature in np.asarray(features, "float32"):
            query = table.search(feature).distance_type("dot").limit(k)
            found = query.select(["image", "label", "_distance"]).to_list()
            yield [(row["image"], row["label"], 1 - row["_distance"]) for row in found]

    def build_index(self):
        """Makes search approximate and faster; worth it from about 100,000 images."""
        from lancedb.index import HnswSq

        self.table.create_index("vector", config=HnswSq(distance_type="dot"))


class PostgresStore:
    """A gallery in PostgreSQL. Each method is one transaction, on its own connection.

    A service would take the connections of a pool.
    """

    def __init__(self, address):
        self.address = address

    def _connect(self, with_vectors=True):
        import psycopg
        from pgvector.psycopg import register_vector

        connection = psycopg.connect(self.address)
        if with_vectors:
            register_vector(connection)
        return connection

    def exists(self):
        with self._connect(with_vectors=False) as database:
            return _has_table(database, "gallery")

    def create(self, fingerprint):
        with self._connect(with_vectors=False) as database:
            database.execute("CREATE EXTENSION IF NOT EXISTS vector")
            database.execute("CREATE TABLE gallery_centroids (fingerprint json)")
            told = json.dumps(fingerprint)
            database.execute("INSERT INTO gallery_centroids VALUES (%s)", [told])
            database.execute(
                "CREATE TABLE gallery (image text PRIMARY KEY, label text NOT NULL, "
                f"vector vector({fingerprint['dim']:d}) NOT NULL)"
            )
            # In the row, of at most 8 kB: searching would fetch each from elsewhere.
            if fingerprint["dim"] < 2000:
                plain = "ALTER TABLE gallery ALTER vector SET STORAGE PLAIN"
                database.execute(plain)

    def fingerprint(self):
        with self._connect() as database:
            if not _has_table(database, "gallery_centroids"):
                return None
            rows = database.execute("SELECT fingerprint FROM gallery_centroids")
            return (rows.fetchone() or [None])[0]

    def add(self, images, labels, features):
        rows = zip(images, labels, np.asarray(features, "float32"), strict=True)
        rows = [(str(image), str(label), vector) for image, label, vector in rows]
        with self._connect() as database, database.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO gallery VALUES (%s, %s, %s) ON CONFLICT (image) DO UPDATE "
                "SET label = EXCLUDED.label, vector = EXCLUDED.vector",
                rows,
            )

    def remove(self, label):
        with self._connect() as database:
            database.execute("DELETE FROM gallery WHERE label = %s", [label])

    def count(self):
        with self._connect() as database:
            return database.execute("SELECT count(*) FROM gallery").fetchone()[0]

    def nearest(self, features, k=1):
        with self._connect() as database:
            for feature in np.asarray(features, "float32"):
                # <#> is minus the product: indexes of PostgreSQL ascend.
                yield database.execute(
                    "SELECT image, label, -(vector <#> %s) FROM gallery "
                    "ORDER BY vector <#> %s LIMIT %s",
                    [feature, feature, k],
                ).fetchall()

    def build_index(self):
        with self._connect() as database:
            # With the 64 MB of the default most of the graph is built on disk.
            database.execute("SET LOCAL maintenance_work_mem = '1GB'")
            database.execute(
                "CREATE INDEX ON gallery USING hnsw (vector vector_ip_ops)"
            )


def _has_table(database, name):
    [found] = database.execute("SELECT to_regclass(%s)", [name]).fetchone()
    return found is not None
