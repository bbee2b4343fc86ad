import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, assert_allclose, numpy_of, only_once

import keras_pedcc
from keras_pedcc import PEDCCDense, PEDCCLoss, recipe
from keras_pedcc.losses import auto_scale


@only_once
@pytest.mark.parametrize(
    ("name", "loss", "head"),
    [
        ("paper", PEDCCLoss(), PEDCCDense(10)),
        ("frozen", PEDCCLoss(margin=0.2, mse_weight=3.0), PEDCCDense(10)),
        (
            "trained",
            PEDCCLoss(margin=0.2, mse_weight=3.0),
            PEDCCDense(10, trainable=True),
        ),
    ],
)
def test_recipe_is_plain_head_and_loss(name, loss, head):
    made = recipe(name, 10, name="head")
    assert made.loss.get_config() == loss.get_config()
    assert made.head.get_config() == {**head.get_config(), "name": "head"}


@only_once
def test_arguments_reach_head_and_loss():
    priors = [3.0, 1.0, 2.0]
    head, loss = recipe("frozen", 3, priors=priors, return_features=False, seed=4)
    assert loss.priors == priors
    assert (head.return_features, head.seed) == (False, 4)


@only_once
@pytest.mark.parametrize("name", ["frozen", "trained"])
def test_scale_grows_where_the_papers_is_too_small(name):
    assert recipe(name, 8360).loss.scale == 15.0
    assert recipe(name, 100_000).loss.scale == auto_scale(100_000, margin=0.2) > 15
    assert recipe("paper", 100_000).loss.scale == 15.0


@only_once
def test_other_names_are_refused():
    with pytest.raises(
        ValueError, match=r"one of 'paper', 'frozen', 'trained'.*'mild'"
    ):
        recipe("mild", 10)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        recipe("trained", 1)


@pytest.mark.parametrize("name", ["frozen", "trained"])
def test_model_of_a_recipe_trains_its_centroids_or_not(name, rng, tmp_path):
    x, y = rng.standard_normal((32, 8)).astype("float32"), np.arange(32) % 3
    head, loss = recipe(name, num_classes=3)
    inputs = keras.Input((8,))
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(16)(inputs)))
    model.compile(keras.optimizers.SGD(0.1), loss, **FEW_STEPS)
    before = numpy_of(head.centroids)
    model.fit(x, y, verbose=0)
    moved = np.abs(numpy_of(head.centroids) - before).max()
    assert (moved > 1e-3) == (name == "trained")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == loss.get_config()
    assert_allclose(loaded.layers[-1].centroids, numpy_of(head.centroids))


def test_scale_is_that_of_the_capacity():
    large = recipe("frozen", 6, capacity=20_000, centroids="random")
    assert large.loss.scale == pytest.approx(auto_scale(20_000, margin=0.2))


def test_name_decides_what_is_trained():
    with pytest.raises(ValueError, match=r"Received: \['trainable'\] beside name="):
        recipe("frozen", 6, trainable=True)
