"""Gradients under every transformation: twice, rematerialised, in loops and batches."""

import keras
import numpy as np
import pytest
from keras import ops
from tensors import assert_allclose, gradient_of, numpy_of

import keras_pedcc
from keras_pedcc import CosineDense, KerdockDense, PEDCCDense, losses
from keras_pedcc.common.gradients import with_gradient

CLASSES, DIM, LABELS = 40, 8, np.array([0, 20, 5, 39])
NO_ANNEALING = {"annealing_base": 0, "annealing_least": 0}
BLOCKS = {"scores": keras_pedcc.Blockwise(16)}
PRIORS = np.geomspace(1, 50, CLASSES)
MARGINS = np.linspace(0, 0.5, CLASSES)
# Head, its arguments, and the loss: a scale at which the second derivative is smooth.
CASES = {
    "pedcc": (PEDCCDense, {}, keras_pedcc.PEDCCLoss(6.0, 0.1, 3.0)),
    "large_scale": (PEDCCDense, {}, keras_pedcc.AMSoftmaxLoss(40.0, 0.1)),
    "priors": (PEDCCDense, {}, keras_pedcc.PEDCCLoss(6.0, MARGINS, 3.0, priors=PRIORS)),
    "root": (PEDCCDense, {}, keras_pedcc.PEDCCLoss(6.0, 0.1, mse_root=2)),
    "arcface": (CosineDense, {}, keras_pedcc.ArcFaceLoss(6.0, 0.1)),
    "a_softmax": (
        CosineDense,
        {"return_norm": True},
        keras_pedcc.ASoftmaxLoss(2, **NO_ANNEALING),
    ),
    "keep_mean": (PEDCCDense, {"trainable": True}, keras_pedcc.PEDCCLoss(6.0, 0.1)),
    "blocks": (PEDCCDense, BLOCKS, keras_pedcc.PEDCCLoss(6.0, 0.1)),
    "trained_blocks": (CosineDense, BLOCKS, keras_pedcc.ArcFaceLoss(6.0, 0.1)),
    "priors_blocks": (
        CosineDense,
        BLOCKS,
        keras_pedcc.ArcFaceLoss(6.0, 0.1, priors=PRIORS),
    ),
    "kerdock": (KerdockDense, BLOCKS, keras_pedcc.PEDCCLoss(6.0, 0.1)),
}
# By blocks, priors are one more term of the scores.
ALIKE = ("priors_blocks",)
KINDS = [kind for kind in CASES if kind not in ALIKE]


def loss_of_features(kind):
    """`f(features, labels)`: head and loss in training, one number."""
    make, arguments, loss = CASES[kind]
    head = make(CLASSES, **arguments)
    head.build((None, DIM))

    def value(features, labels):
        # In training this head counts the steps, which is no function of the features.
        outputs = head(features, training=not head.return_norm)
        if head.streams:
            outputs = head.for_loss(outputs)["logits"]
            return ops.mean(loss.call(labels, outputs))
        return loss(labels, outputs)

    return value


def product_with_hessian(function, array, direction):
    """`d^2 f / dx dx . v`, by differentiating twice."""
    array, direction = map(ops.convert_to_tensor, (array, direction))
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        along = jax.grad(lambda x: ops.sum(jax.grad(function)(x) * direction))
        return numpy_of(along(array))
    if backend == "torch":
        import torch

        array = array.detach().requires_grad_()
        slope = torch.autograd.grad(function(array), array, create_graph=True)[0]
        return numpy_of(torch.autograd.grad((slope * direction).sum(), array)[0])
    import tensorflow as tf

    with tf.GradientTape() as outer:
        outer.watch(array)
        with tf.GradientTape() as inner:
            inner.watch(array)
            value = function(array)
        along = tf.reduce_sum(inner.gradient(value, array) * direction)
    return numpy_of(outer.gradient(along, array))


@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ALIKE)]
)
def test_second_derivative_agrees_with_differences_of_the_first(kind, rng):
    value = loss_of_features(kind)
    x, v = rng.standard_normal((2, 4, DIM)).astype("float32")
    found = product_with_hessian(lambda x: value(x, LABELS), x, v)
    step = np.float32(3e-3)
    up, down = (
        gradient_of(lambda x: value(x, LABELS), x + sign * step * v) for sign in (1, -1)
    )
    expected = (up - down) / (2 * step)
    # Of the differences: the third derivative, and the rounding of the first.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's transformations")
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_same_under_transformations_of_jax(kind, rng):
    import jax

    value = loss_of_features(kind)
    x, labels = rng.standard_normal((4, DIM)).astype("float32"), ops.array(LABELS)

    def halves(x):
        return x.reshape(2, 2, DIM), labels.reshape(2, 2)

    def scanned(x):
        return jax.lax.scan(lambda s, xy: (s + value(*xy), None), 0.0, halves(x))[0] / 2

    def batched(x):
        return ops.mean(jax.vmap(value)(*halves(x)))

    def alternating(x):
        return ops.mean(ops.stack([value(*xy) for xy in zip(*halves(x), strict=True)]))

    plain = jax.grad(value)(x, labels)
    remade = jax.grad(jax.checkpoint(value))(x, labels)
    assert_allclose(remade, plain, rtol=1e-5, atol=1e-5)
    expected = jax.grad(alternating)(x)
    for function in (scanned, batched):
        assert_allclose(jax.grad(function)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch frees buffers")
def test_no_array_of_all_classes_outlives_the_backward_pass(rng):
    import gc

    import torch

    value = loss_of_features("pedcc")
    x = torch.tensor(rng.standard_normal((4, DIM)), dtype=torch.float32)
    loss = value(x.requires_grad_(), LABELS)
    loss.backward()
    gc.collect()
    left = [
        each
        for each in gc.get_objects()
        if type(each) is torch.Tensor and each.shape == (4, CLASSES)
    ]
    assert left == []
    assert loss.grad_fn is not None  # the graph itself is still there


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's graph")
def test_no_scores_outlive_a_step_by_blocks(rng):
    import gc

    import torch

    make, arguments, loss = CASES["blocks"]
    head = make(CLASSES, **arguments)
    for _ in range(3):
        x = torch.tensor(rng.standard_normal((4, DIM)), dtype=torch.float32)
        outputs = head(x.requires_grad_(), training=True)
        scores = head.for_loss(outputs)["logits"]
        ops.mean(loss.call(LABELS, scores)).backward()
    kind = type(scores)
    del scores, outputs, x
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is kind] == []


def test_with_gradient_takes_the_gradient_it_is_given():
    doubled = with_gradient(lambda x: (x, ()), lambda tensors, rest, up: (2 * up,))
    array = np.array([1.0, -3.0], "float32")
    assert_allclose(doubled(ops.convert_to_tensor(array)), array)
    assert_allclose(gradient_of(doubled, array), [2.0, 2.0])


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's autocast")
@pytest.mark.parametrize("kind", CASES)
def test_autocast_shortens_no_cosine(kind, rng):
    import torch

    value = loss_of_features(kind)
    x = torch.tensor(rng.standard_normal((4, DIM)), dtype=torch.float32)
    plain = value(x, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert_allclose(value(x, LABELS), numpy_of(plain), rtol=0)


def test_margin_is_a_constant_of_the_loss(rng):
    cosines = rng.uniform(-1, 1, (3, 5)).astype("float32")
    for loss in (losses.am_softmax_loss, losses.arcface_loss):
        value = loss([0, 1, 2], cosines, margin=ops.convert_to_tensor(0.25))
        assert_allclose(value, numpy_of(loss([0, 1, 2], cosines, margin=0.25)))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's eager variables"
)
@pytest.mark.parametrize("kind", ["blocks", "trained_blocks"])
def test_eager_step_trains_a_head_by_blocks(kind, rng):
    make, arguments, loss = CASES[kind]
    inputs = keras.Input((DIM,))
    head = make(CLASSES, **arguments, trainable=True)
    model = keras_pedcc.PEDCCModel(inputs, head(inputs))
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    before = numpy_of(head.centroids)
    model.fit(rng.standard_normal((4, DIM)), LABELS, verbose=0)
    assert np.abs(numpy_of(head.centroids) - before).max() > 1e-3
