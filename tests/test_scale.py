"""The floor of the loss, and the scale that is chosen by it."""

import keras
import numpy as np
import pytest
import reference
from tensors import FEW_STEPS, assert_allclose

import keras_pedcc
from keras_pedcc import AMSoftmaxLoss, ArcFaceLoss, PEDCCLoss, generate_pedcc
from keras_pedcc.losses import auto_scale, loss_floor


@pytest.mark.parametrize(
    ("num_classes", "scale", "margin", "expected"),
    [
        (10, 7.5, 0.35, 0.02943),
        (47, 7.5, 0.35, 0.2611),
        (100, 7.5, 0.35, 0.5311),
        (100, 15, 0.5, 0.04598),
        (100_000, 30, 0.35, 3.4e-4),
    ],
)
def test_floor_is_the_known_one(num_classes, scale, margin, expected):
    found = loss_floor(num_classes, scale=scale, margin=margin)
    assert found == pytest.approx(expected, rel=5e-3)


def test_floor_is_the_loss_of_every_sample_on_its_centroid():
    centroids = keras.ops.convert_to_numpy(generate_pedcc(20, 32)).astype("float64")
    cosines = (centroids @ centroids.T).astype("float32")
    loss = reference.am_softmax(np.arange(20), cosines, 9, 0.3)
    assert loss_floor(20, scale=9, margin=0.3) == pytest.approx(loss.mean(), rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 10, 100, 10**6])
@pytest.mark.parametrize("margin", [0, 0.35, 0.5, 0.9])
def test_chosen_scale_reaches_the_promised_floor(num_classes, margin):
    scale = auto_scale(num_classes, margin=margin)
    assert loss_floor(num_classes, scale=scale, margin=margin) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (PEDCCLoss, lambda m: 1 - m),
        (AMSoftmaxLoss, lambda m: 1 - m),
        (ArcFaceLoss, np.cos),
    ],
)
@pytest.mark.parametrize("margin", [0.4, [0.1, 0.4, 0.2]])
def test_losses_take_the_scale_that_is_chosen(rng, kind, own, margin):
    cosines = rng.uniform(-1, 1, (8, 3)).astype("float32")
    labels = np.arange(8) % 3
    scale = np.log(2 / np.expm1(0.05)) / (own(0.4) + 1 / 2)
    chosen = kind(scale="auto", margin=margin)(labels, cosines)
    assert_allclose(chosen, float(kind(scale=scale, margin=margin)(labels, cosines)))


def test_config_keeps_the_word():
    loss = PEDCCLoss(scale="auto")
    again = PEDCCLoss.from_config(loss.get_config())
    assert again.scale == "auto"


def test_streaming_head_has_the_scale_of_its_classes():
    inputs = keras.Input((4,))
    head = keras_pedcc.PEDCCDense(30, scores="blockwise")
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(8)(inputs)))
    x, y = np.random.default_rng(0).normal(size=(16, 4)), np.arange(16)
    found = []
    for scale in ("auto", auto_scale(30)):
        model.compile("sgd", PEDCCLoss(scale=scale), **FEW_STEPS)
        found.append(model.evaluate(x, y, verbose=0))
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("kind", [PEDCCLoss, AMSoftmaxLoss, ArcFaceLoss])
def test_scale_that_is_too_small_is_told_once(kind):
    loss = kind(scale=2.0)
    cosines = np.zeros((2, 100), "float32")
    with pytest.warns(UserWarning, match=r'cannot fall below \d\.\d\d.*scale="auto"'):
        loss([0, 1], cosines)
    loss([0, 1], cosines)  # warnings are errors here


def test_scale_that_fits_is_not_warned_of():
    for kind in (PEDCCLoss, AMSoftmaxLoss, ArcFaceLoss):
        kind()([0, 1], np.zeros((2, 1000), "float32"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: auto_scale(1), ValueError, "`num_classes` must be at least 2"),
        (lambda: auto_scale(2.5), TypeError, "whole number"),
        (lambda: auto_scale(9, margin=1.5), ValueError, r"in \[0, 1\].*large enough"),
        (lambda: loss_floor(9, scale=0), ValueError, "`scale` must be"),
        (lambda: loss_floor(9, margin=3), ValueError, "`margin` must be"),
        (lambda: PEDCCLoss(scale="max"), ValueError, "`scale` must be"),
        (
            lambda: PEDCCLoss("auto", 1.5)([0], np.zeros((1, 9), "float32")),
            ValueError,
            "a margin that a class on its centroid can keep",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("function", [auto_scale, loss_floor])
def test_one_margin_for_all_classes(function):
    with pytest.raises(ValueError, match=r"`margin` must be a number.*\[0.1, 0.2\]"):
        function(10, margin=[0.1, 0.2])
