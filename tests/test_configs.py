"""Every argument comes back from a config, for all that is saved."""

import inspect

import keras
import pytest

import keras_pedcc

COMMON = {"name": "mine", "dtype": "float64"}
ANNEALED = {
    "margin": 3,
    "annealing_base": 9.0,
    "annealing_gamma": 0.2,
    "annealing_power": 2.0,
    "annealing_least": 1.0,
    "reduction": "sum",
}
WITH_MARGIN = {"scale": 9.0, "margin": 0.1, "priors": [3.0, 0.5], "reduction": "sum"}
NORMED = {"return_norm": True, "dtype": "float16"}
SAMPLED = {"scores": keras_pedcc.Sampled(0.5, block_size=7)}
BARE = {"return_features": False, "trainable": True}
ROOM = {"capacity": 310}
METRIC = {"num_classes": 5, "dim": 6}
# Class and the arguments of one or more objects, none of them a default.
CASES = [
    (
        keras_pedcc.PEDCCLoss,
        [
            {"scale": 30.0, "margin": 0.35, "mse_weight": 5.0, "mse_root": 2},
            {"reduction": "sum", "priors": [3.0, 0.5]},
        ],
    ),
    (keras_pedcc.AMSoftmaxLoss, [WITH_MARGIN]),
    (keras_pedcc.ArcFaceLoss, [WITH_MARGIN]),
    (keras_pedcc.AdaFaceLoss, [{**WITH_MARGIN, "h": 0.5}]),
    (keras_pedcc.ASoftmaxLoss, [ANNEALED]),
    (keras_pedcc.LSoftmaxLoss, [ANNEALED]),
    (keras_pedcc.CenterLoss, [{"center_weight": 0.5, "reduction": "mean"}]),
    (keras_pedcc.HingeLoss, [{"margin": 2.0, "reduction": "sum"}]),
    (keras_pedcc.NTCELoss, [{"scale": 9.0, "reduction": "sum"}]),
    (keras_pedcc.NONLLoss, [{"scale": 9.0, "reduction": "sum"}]),
    (keras_pedcc.CosineDense, [NORMED, SAMPLED, ROOM, {"return_features": False}]),
    (keras_pedcc.SubCenterDense, [{"return_features": False, "sub_centers": 2}]),
    (
        keras_pedcc.PEDCCDense,
        [
            NORMED,
            SAMPLED,
            ROOM,
            BARE,
            {"seed": 3, "centroids": "random", "keep_mean": True},
        ],
    ),
    (
        keras_pedcc.KerdockDense,
        [
            {"return_norm": True, **ROOM},
            {"seed": 3, "scores": keras_pedcc.Blockwise(9)},
            BARE,
        ],
    ),
    (keras_pedcc.PEDCCProductDense, [{"radius": 0.5, "trainable": True}]),
    (keras_pedcc.ProductDense, [{"trainable": False}, ROOM]),
    (keras_pedcc.CenterDense, [{"trainable": False}]),
    (keras_pedcc.IntraClassDistance, [METRIC]),
    (keras_pedcc.InterClassDistance, [METRIC]),
]
INITIALIZERS = {"kernel_initializer", "center_initializer"}
# An array is saved as the weight.
NOT_HERE = {"self", "kwargs", "num_classes", "centroids", "name", "dtype"}


def restored(made):
    config = keras.saving.serialize_keras_object(made)
    return keras.saving.deserialize_keras_object(config)


def objects_of(kind, arguments):
    if issubclass(kind, keras.layers.Layer):
        return kind(300, **arguments)
    return kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(kind, {**COMMON, **each}) for kind, given in CASES for each in given],
)
def test_arguments_come_back(kind, arguments):
    again = restored(objects_of(kind, arguments))
    assert type(again) is kind
    for name, value in arguments.items():
        # The centroids of a head are a weight; their method is in the config alone.
        config = name == "centroids" and again.get_config()
        assert (config[name] if config else getattr(again, name)) == value, name


@pytest.mark.parametrize("kind", [kind for kind, _ in CASES])
def test_initializers_come_back(kind):
    for name in INITIALIZERS & set(inspect.signature(kind).parameters):
        again = restored(kind(300, **{name: keras.initializers.RandomNormal(0, 0.3)}))
        assert getattr(again, name).stddev == 0.3


@pytest.mark.parametrize(("kind", "given"), CASES)
def test_every_argument_is_tried(kind, given):
    tried = INITIALIZERS.union(*given)
    assert not set(inspect.signature(kind.__init__).parameters) - tried - NOT_HERE


def test_every_class_that_is_saved_is_tried():
    kinds = (keras.layers.Layer, keras.losses.Loss, keras.metrics.Metric)
    public = [getattr(keras_pedcc, name) for name in keras_pedcc.__all__]
    saved = {
        each
        for each in public
        if inspect.isclass(each)
        and issubclass(each, kinds)
        and not issubclass(each, keras.Model)
    }
    assert saved == {kind for kind, _ in CASES}
