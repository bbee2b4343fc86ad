"""`embed` gives one row for each image, whatever form the images have."""

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


class Batches(keras.utils.PyDataset):
    """Images in batches of eight, with a label for each."""

    def __init__(self, images):
        super().__init__()
        self.batches = [images[i : i + 8] for i in range(0, len(images), 8)]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index], np.zeros(len(self.batches[index]))


def embedder_of(inputs, hidden):
    head = keras_pedcc.PEDCCDense(4)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(5)(hidden)))
    return keras_pedcc.embedder(model)


def data_sets(images):
    """Forms of the images that depend on the backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return [tf.data.Dataset.from_tensor_slices(images).batch(8)]
    if backend == "torch":
        from torch.utils.data import DataLoader

        return [DataLoader(images, batch_size=8)]
    return []


def check():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 20, 3)).astype("float32")

    names = {name: keras.Input((3,), name=name) for name in ("first", "second")}
    total = names["first"] - 2.0 * names["second"]
    two = embedder_of(names, total)
    expected = two.predict({"first": first, "second": second}, verbose=0)
    found = keras_pedcc.embed(two, {"first": first, "second": second})
    np.testing.assert_allclose(found, expected, atol=1e-6)

    listed = embedder_of([*names.values()], total)
    expected = listed.predict([first, second], verbose=0)
    found = keras_pedcc.embed(listed, [first, second])
    np.testing.assert_allclose(found, expected, atol=1e-6)

    inputs = keras.Input((3,))
    one = embedder_of(inputs, inputs)
    expected = one.predict(first, verbose=0)
    pieces = (first[i : i + 8] for i in range(0, 20, 8))
    for images in (Batches(first), pieces, *data_sets(first)):
        found = keras_pedcc.embed(one, images)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert keras_pedcc.embed(one, first[:0]).shape == (0, 5)
