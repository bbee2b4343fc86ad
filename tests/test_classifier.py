import keras
import numpy as np
import pytest

import keras_pedcc
from keras_pedcc import (
    AMSoftmaxLoss,
    CenterDense,
    HingeLoss,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    classifier,
    identify,
)
from keras_pedcc.losses.scale import auto_scale

NAMES = ["ant", "bee", "cat"]


def made(loss=None, shape=(5,)):
    inputs = keras.Input(shape)
    model = PEDCCModel(inputs, PEDCCDense(3)(keras.layers.Dense(4)(inputs)))
    model.compile("sgd", loss or AMSoftmaxLoss(scale=12.0))
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)
        self.head = PEDCCDense(3, return_features=False)

    def call(self, inputs):
        return self.head(self.dense(inputs))


def nested():
    inputs = keras.Input((5,))
    return keras.Model(inputs, made()(2.0 * inputs))


def sequential():
    head = PEDCCDense(3, return_features=False)
    return keras.Sequential([keras.layers.Dense(4), head])


@pytest.fixture
def images(rng):
    return rng.standard_normal((6, 5)).astype("float32")


def softmax(cosines, scale):
    exponents = np.exp(scale * np.asarray(cosines, "float64"))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", [made, nested, sequential, Subclassed])
def test_probabilities_agree_with_float64(images, kind):
    model = kind()
    if kind is not made:
        model.compile("sgd", AMSoftmaxLoss(scale=12.0) if kind is not nested else None)
    cosines = model.predict(images, verbose=0)
    cosines = cosines["logits"] if isinstance(cosines, dict) else cosines
    scale = {"scale": 12.0} if kind is nested else {}
    found = classifier(model, **scale).predict(images, verbose=0)
    np.testing.assert_allclose(found, softmax(cosines, 12.0), rtol=1e-5)


def test_classifier_takes_inputs_by_name(images):
    inputs = {key: keras.Input((5,), name=key) for key in "ab"}
    hidden = keras.layers.Dense(4)(inputs["a"]) - inputs["b"][:, :4]
    model = PEDCCModel(inputs, PEDCCDense(3)(hidden))
    given = {"a": images, "b": images[::-1].copy()}
    cosines = model.predict(given, verbose=0)["logits"]
    found = classifier(model, scale=2.0).predict(given, verbose=0)
    np.testing.assert_allclose(found, softmax(cosines, 2.0), rtol=1e-5)


def test_scale_is_that_of_the_loss_or_the_one_given(images):
    def scale_of(model, **kwargs):
        return classifier(model, **kwargs).layers[-1].scale

    assert scale_of(made(PEDCCLoss())) == 15.0
    assert scale_of(made(PEDCCLoss()), scale=3) == 3.0
    auto = made(AMSoftmaxLoss(scale="auto", margin=0.25))
    assert scale_of(auto) == pytest.approx(auto_scale(3, margin=0.25))


def test_classifier_shares_its_weights(images):
    model = made()
    part = classifier(model)
    before = part.predict(images, verbose=0)
    model.fit(images, np.arange(6) % 3, verbose=0)
    cosines = model.predict(images, verbose=0)["logits"]
    after = part.predict(images, verbose=0)
    np.testing.assert_allclose(after, softmax(cosines, 12.0), rtol=1e-5)
    assert np.abs(after - before).max() > 1e-3


def test_identify_names_the_most_probable_classes(images, tmp_path):
    part = classifier(made(), class_names=NAMES)
    expected = part.predict(images, verbose=0)
    part.save(tmp_path / "part.keras")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    for row, found in zip(expected, identify(loaded, images, k=2), strict=True):
        best = sorted(zip(-row, NAMES, strict=True))[:2]
        assert [name for name, _ in found] == [name for _, name in best]
        assert [p for _, p in found] == pytest.approx([-p for p, _ in best])
    [[(number, _)], *_] = identify(classifier(made()), images)
    assert number in ("0", "1", "2")


def test_classifier_computes_in_float32(images):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = made()
    part = classifier(model)
    found = part.predict(images, verbose=0)
    assert found.dtype == "float32"
    cosines = model.predict(images, verbose=0)["logits"]
    np.testing.assert_allclose(found, softmax(cosines, 12.0), rtol=1e-5)


def test_classifier_refuses_models():
    with pytest.raises(ValueError, match=r"loss=<.*HingeLoss.*Pass the scale"):
        classifier(made(HingeLoss()))
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4)(inputs)
    with pytest.raises(ValueError, match="loss=None"):
        classifier(PEDCCModel(inputs, CenterDense(3)(hidden)))
    streaming = PEDCCModel(inputs, PEDCCDense(3, scores="blockwise")(hidden))
    with pytest.raises(ValueError, match=r"outputs \['features'\]. Make the head"):
        classifier(streaming, scale=1.0)
    with pytest.raises(ValueError, match=r"type Subclassed\).*Call it on a batch"):
        classifier(Subclassed(), scale=1.0)


def test_names_and_numbers_are_checked(images):
    with pytest.raises(ValueError, match=r"2 names, for 3 classes"):
        classifier(made(), class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"all different.*\['a'\] more than once"):
        classifier(made(), class_names=["a", "b", "a"])
    with pytest.raises(ValueError, match="`scale` must be a positive number"):
        classifier(made(), scale=0.0)
    with pytest.raises(ValueError, match="k=4, with 3 classes"):
        identify(classifier(made()), images, k=4)
    with pytest.raises(ValueError, match="must be a model of `keras_pedcc"):
        identify(made(), images)


def with_room(loss):
    inputs = keras.Input((8,))
    outputs = keras_pedcc.PEDCCDense(6, capacity=10)(keras.layers.Dense(12)(inputs))
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    model.compile("sgd", loss)
    return model


def test_head_with_room_gives_the_classes_in_use(rng):
    model = with_room(keras_pedcc.PEDCCLoss(scale="auto"))
    images, names = rng.standard_normal((3, 8)).astype("float32"), list("abcdef")
    made = keras_pedcc.classifier(model, class_names=names)
    scale = keras_pedcc.losses.auto_scale(6, margin=0.5)
    assert made.layers[-1].scale == pytest.approx(scale)
    found = keras_pedcc.identify(made, images, k=6)
    assert {name for name, _ in found[0]} == set(names)
    with pytest.raises(ValueError, match="Received: 2 names, for 6 classes"):
        keras_pedcc.classifier(model, class_names=["a", "b"])


def test_scale_over_the_samples_of_a_batch_is_none_of_the_classes():
    model = with_room(keras_pedcc.NTCELoss())
    with pytest.raises(ValueError, match="`scale` must be given"):
        keras_pedcc.classifier(model)
