"""One row comes out for each that goes in, whatever form the inputs have."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_pedcc import embed
from keras_pedcc.evaluation import prediction
from keras_pedcc.evaluation.prediction import predict_all

ROWS = 20
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's"
)


@pytest.fixture(scope="module")
def one():
    """A model of one input, that an image tells from the others."""
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])


@pytest.fixture(scope="module")
def two():
    """Two models of two inputs, the same function: by name, and by order."""
    inputs = {name: keras.Input((3,), name=name) for name in "ab"}
    hidden = [keras.layers.Dense(5)(each) for each in inputs.values()]
    outputs = hidden[0] - 2.0 * hidden[1]
    return keras.Model(inputs, outputs), keras.Model([*inputs.values()], outputs)


@pytest.fixture
def images(rng):
    return rng.standard_normal((ROWS, 3)).astype("float32")


def in_batches(images, size=8):
    return [images[start : start + size] for start in range(0, len(images), size)]


class DataSet(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.batches = in_batches(images)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index], np.zeros(len(self.batches[index]))


def tf_data(images):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((images, images[:, 0])).batch(8)


def loader(images):
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(data.TensorDataset(ops.convert_to_tensor(images)), 8)


FORMS = {
    "array": lambda images: images,
    "tensor": ops.convert_to_tensor,
    "generator": lambda images: ((each,) for each in in_batches(images)),
    "generator with labels": lambda images: ((x, x[:, 0]) for x in in_batches(images)),
    "generator of arrays": lambda images: (each for each in in_batches(images)),
    "iterator": lambda images: iter(in_batches(images)),
    "data set of Keras": DataSet,
    "data set of TensorFlow": tf_data,
    "loader of PyTorch": loader,
}
if keras.backend.backend() != "torch":
    del FORMS["loader of PyTorch"]
BATCHED = [name for name in FORMS if name not in ("array", "tensor")]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_a_row_for_each_image(one, images, form):
    expected = one.predict(images, verbose=0)
    found = predict_all(one, FORMS[form](images))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_form_gives_a_row_for_each_pair_of_inputs(two, images):
    by_name, by_order = two
    pair = [images, images[::-1].copy()]
    expected = by_order.predict(pair, verbose=0)
    named = dict(zip("ab", pair, strict=True))
    batches = zip(*map(in_batches, pair), strict=True)
    for model, given in (
        (by_order, pair),
        (by_name, named),
        (by_name, ({"a": a, "b": b} for a, b in batches)),
    ):
        np.testing.assert_allclose(predict_all(model, given), expected, atol=1e-6)


def test_batch_size_that_does_not_divide_gives_every_row(one, images):
    expected = one.predict(images, verbose=0)
    np.testing.assert_allclose(
        predict_all(one, images, batch_size=7), expected, atol=1e-6
    )


def test_array_without_rows_gives_none(one, two, images):
    assert predict_all(one, images[:0]).shape == (0, 5)
    assert predict_all(one, images[:0]).dtype == "float32"
    assert predict_all(two[1], [images[:0], images[:0]]).shape == (0, 5)


@pytest.mark.parametrize("form", BATCHED)
def test_data_without_batches_is_refused(one, images, form):
    with pytest.raises(ValueError, match=r"at least one batch. Received: none\. Pass"):
        predict_all(one, FORMS[form](images[:0]))
    # On JAX a `predict` that fails leaves the model without its weights.
    assert predict_all(one, images).shape == (ROWS, 5)


def test_generator_that_was_read_is_refused(one, images):
    batches = FORMS["generator"](images)
    predict_all(one, batches)
    with pytest.raises(ValueError, match="generator that was not read before"):
        predict_all(one, batches)


@pytest.mark.parametrize("given", [None, "images.npz", 3, [[1.0, 2.0, 3.0]], {"a": 1}])
def test_what_is_no_array_is_refused(one, given):
    with pytest.raises(
        ValueError, match=r"`images` must be an array.* without a shape"
    ):
        predict_all(one, given)


def test_one_number_is_refused(one):
    with pytest.raises(ValueError, match=r"one row for each image.*shapes \[\(\)\]"):
        predict_all(one, np.float32(1))


def test_inputs_of_different_length_are_refused(two, images):
    with pytest.raises(ValueError, match=r"shapes \[\(20, 3\), \(19, 3\)\]. Pass"):
        predict_all(two[0], {"a": images, "b": images[1:]})


def test_list_of_batches_is_refused(one, images):
    with pytest.raises(ValueError, match=r"a list of 3, for 1 inputs.*np.concatenate"):
        predict_all(one, in_batches(images))


def test_batch_size_is_checked(one, images):
    with pytest.raises(TypeError, match="`batch_size` must be a whole number"):
        predict_all(one, images, batch_size=2.5)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        embed(one, images, batch_size=0)


def test_model_that_gives_other_rows_is_refused(images):
    inputs = keras.Input((4,))
    halves = keras.Model(inputs, ops.reshape(inputs, (-1, 2)))
    with pytest.raises(ValueError, match=r"one row.*shape \(40, 2\) for 20 images"):
        predict_all(halves, np.ones((20, 4)))


def test_optional_input_may_be_left_out(images):
    class Sum(keras.layers.Layer):
        def call(self, first, second=None):
            return first if second is None else first + second

    inputs = keras.Input((3,)), keras.Input((3,), optional=True)
    model = keras.Model(inputs, Sum()(*inputs))
    assert np.array_equal(predict_all(model, (images, None)), images)


class Recorder:
    """A model that keeps the sizes of its batches, and doubles its inputs."""

    def predict(self, inputs, batch_size, verbose):
        if batch_size is None:
            batches = [batch for (batch,) in inputs]
        else:
            batches = in_batches(inputs, batch_size)
        self.sizes = [len(batch) for batch in batches]
        return 2 * np.concatenate(batches)


@pytest.mark.parametrize(
    ("form", "sizes"), [("array", [9, 9, 3]), ("iterator", [9, 9, 6])]
)
def test_every_batch_divides_by_the_number_of_devices(monkeypatch, images, form, sizes):
    monkeypatch.setattr(prediction, "_parts_of_batch", lambda model: 3)
    model = Recorder()
    found = predict_all(model, FORMS[form](images), batch_size=8)
    np.testing.assert_array_equal(found, 2 * images)
    assert model.sizes == sizes


@pytest.fixture(scope="module")
def on_replicas(two_replicas):
    """Batch normalisation of images, which may fail in a replica without one."""
    layers = keras.layers.Reshape((1, 1, 3)), keras.layers.BatchNormalization()
    with two_replicas.scope():
        return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Flatten()])


@on_tensorflow
@pytest.mark.parametrize(
    ("form", "number"),
    [("array", 0), ("array", 17), ("generator", 17), ("data set of TensorFlow", 17)],
)
def test_two_replicas_give_a_row_for_each_image(on_replicas, rng, form, number):
    images = rng.standard_normal((number, 3)).astype("float32")
    found = predict_all(on_replicas, FORMS[form](images), batch_size=5)
    np.testing.assert_allclose(found, images / 1.001**0.5, rtol=1e-6)
