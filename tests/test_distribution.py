"""MirroredStrategy on two logical CPU devices against one device."""

import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, draw_alike

from keras_pedcc import (
    AdaFaceLoss,
    ArcFaceLoss,
    CenterDense,
    CenterLoss,
    CosineDense,
    FinetuneCallback,
    FinetuneOptimizer,
    LSoftmaxLoss,
    MarginWarmup,
    NONLLoss,
    NTCELoss,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    ProductDense,
    VerificationCallback,
    embedder,
    pair_scores,
    verification_report,
)

if keras.backend.backend() != "tensorflow":
    pytest.skip("MirroredStrategy is TensorFlow's", allow_module_level=True)

import tensorflow as tf


def compiled(model, strategy, optimizer, loss, **arguments):
    """The model, ready to train; one device takes its steps without a trace."""
    how = {} if isinstance(strategy, tf.distribute.MirroredStrategy) else FEW_STEPS
    model.compile(optimizer, loss, **arguments, **how)
    # A step that made these variables would be traced once more.
    model.optimizer.build(model.trainable_variables)
    return model


def trained(strategy, root, epoch, weights=None, first=None, penalty=0.0):
    """Five SGD steps on batches of 16 in each epoch; history and all weights.

    From epoch `first` (the last one, unless given) to `epoch`; the centroids are
    unfrozen at epoch 1.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((80, 4)).astype("float32")
    with strategy.scope():
        draw_alike(0)
        inputs = keras.Input((4,))
        regularizer = keras.regularizers.L2(penalty)
        dense = keras.layers.Dense(8, kernel_regularizer=regularizer)
        model = PEDCCModel(inputs, PEDCCDense(3)(dense(inputs)))
        optimizer, loss = keras.optimizers.SGD(0.05), PEDCCLoss(mse_root=root)
        compiled(model, strategy, optimizer, loss, metrics=["accuracy"])
    history = model.fit(
        images,
        np.arange(80) % 3,
        batch_size=16,
        epochs=epoch + 1,
        initial_epoch=epoch if first is None else first,
        shuffle=False,
        verbose=0,
        sample_weight=weights,
        callbacks=[FinetuneCallback(1)] if epoch else None,
    )
    return history.history, model.get_weights()


@pytest.mark.parametrize(
    ("root", "epoch", "weighted"),
    [  # each pair of values once
        (2, 1, True),
        (3, 0, False),
        pytest.param(1, 0, True, marks=pytest.mark.slow),
        pytest.param(1, 1, False, marks=pytest.mark.slow),
        pytest.param(2, 0, False, marks=pytest.mark.slow),
        pytest.param(3, 1, True, marks=pytest.mark.slow),
    ],
)
def test_two_replicas_are_one_device(two_replicas, root, epoch, weighted):
    """Frozen (epoch 0) and unfrozen, with and without weights of the samples."""
    weights = np.linspace(0.5, 2, 80).astype("float32") if weighted else None
    one, expected = trained(tf.distribute.get_strategy(), root, epoch, weights)
    found, ours = trained(two_replicas, root, epoch, weights)
    np.testing.assert_allclose(found["loss"], one["loss"], rtol=1e-5)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("root", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_unfreezing_on_the_way_and_extra_losses_count_once(two_replicas, root):
    one, expected = trained(tf.distribute.get_strategy(), root, 2, first=0, penalty=0.1)
    found, ours = trained(two_replicas, root, 2, first=0, penalty=0.1)
    np.testing.assert_allclose(found["loss"], one["loss"], rtol=1e-5)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def normed(number):
    return CosineDense(number, return_norm=True)


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (PEDCCDense, PEDCCLoss(mse_root=2)),
        (normed, AdaFaceLoss(8.0)),
        (CosineDense, NONLLoss()),
    ],
)
def test_a_replica_without_samples_changes_nothing(two_replicas, head, loss):
    # The last batch has one sample for two replicas.
    with two_replicas.scope():
        inputs = keras.Input((4,))
        model = PEDCCModel(inputs, head(3)(keras.layers.Dense(8)(inputs)))
        compiled(model, two_replicas, "sgd", loss)
    images = np.random.default_rng(0).standard_normal((17, 4))
    history = model.fit(images, np.arange(17) % 3, batch_size=16, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


def fitted(strategy, make_head, loss, rate=None, callbacks=None):
    """Two epochs of three steps with any head and loss; history, then weights."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((48, 4)).astype("float32")
    with strategy.scope():
        draw_alike(0)
        inputs = keras.Input((4,))
        model = PEDCCModel(inputs, make_head(3)(keras.layers.Dense(8)(inputs)))
        optimizer = keras.optimizers.SGD(0.05)
        if rate is not None:
            optimizer = FinetuneOptimizer(optimizer, keras.optimizers.SGD(rate))
        compiled(model, strategy, optimizer, loss)
    arguments = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(images, np.arange(48) % 3, callbacks=callbacks, **arguments)
    return history.history["loss"], model.get_weights()


@pytest.mark.parametrize(
    "arguments",
    [
        (ProductDense, LSoftmaxLoss(2, annealing_gamma=1.0)),
        (CenterDense, CenterLoss(1.0), 0.5),
        (CosineDense, NONLLoss()),
        (normed, AdaFaceLoss(8.0), None, [MarginWarmup(2)]),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                (PEDCCDense, ArcFaceLoss(), None, [MarginWarmup(2)]),
                (PEDCCDense, PEDCCLoss(), None, [MarginWarmup(2)]),
                (CosineDense, NTCELoss()),
            )
        ),
    ],
    ids=lambda arguments: type(arguments[1]).__name__,
)
def test_two_replicas_are_one_device_for_every_loss(two_replicas, arguments):
    found = fitted(two_replicas, *arguments)
    expected = fitted(tf.distribute.get_strategy(), *arguments)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_verification_during_training_on_replicas(two_replicas):
    images = np.random.default_rng(1).standard_normal((21, 4)).astype("float32")
    pairs = np.arange(20).reshape(10, 2) + 1
    with two_replicas.scope():
        inputs = keras.Input((4,))
        model = PEDCCModel(inputs, PEDCCDense(3)(keras.layers.Dense(8)(inputs)))
        compiled(model, two_replicas, keras.optimizers.SGD(0.05), PEDCCLoss())
    verify = VerificationCallback(images, pairs, np.arange(10) % 2, folds=5)
    labels = np.arange(20) % 3
    logs = model.fit(
        images[:20], labels, batch_size=10, epochs=2, callbacks=[verify], verbose=0
    ).history
    scores = pair_scores(embedder(model).predict(images, verbose=0), pairs=pairs)
    expected = verification_report(np.arange(10) % 2, scores, folds=5)
    assert logs["val_verification_auc"][-1] == pytest.approx(expected["auc"])
