"""The losses of the image experiments, and the head that each needs.

Each function takes the features, the number of classes and the settings, and
returns the outputs of the model and the loss.
"""

import keras

import keras_pedcc
from image_experiment import settings


class Anchor(keras.regularizers.Regularizer):
    """Pull of centroids back to where they began: `weight / 2 sum |c - c_0|^2`."""

    def __init__(self, weight, start):
        self.weight, self.start = weight, start

    def __call__(self, centroids):
        moved = keras.ops.square(centroids - self.start)
        return self.weight / 2 * keras.ops.sum(moved)


def _pedcc(features, num_classes, args):
    loss = keras_pedcc.PEDCCLoss(
        args.scale, args.margin, args.mse_weight, args.mse_root
    )
    return _cosines(features, num_classes, args), loss


def _cosines(features, num_classes, args):
    """Outputs of the head with the centroids of `--centroids`."""
    head = keras_pedcc.PEDCCDense(
        num_classes,
        seed=args.centroid_seed,
        centroids="random" if args.centroids == "random" else "auto",
        trainable=args.centroids != "pedcc",
        keep_mean=args.keep_mean,
        name="head",
    )
    outputs = head(features)
    if args.anchor:
        start = keras.ops.convert_to_numpy(head.centroids)
        head.centroids.regularizer = Anchor(args.anchor, start)
    return outputs


def _pedcc_am(features, num_classes, args):
    """PEDCC-Loss without eq. 9."""
    outputs = _cosines(features, num_classes, args)
    return outputs, keras_pedcc.AMSoftmaxLoss(args.scale, args.margin)


def _am_softmax(features, num_classes, args):
    outputs = _decayed(
        keras_pedcc.CosineDense(num_classes, name="head"), features, args
    )
    return outputs, keras_pedcc.AMSoftmaxLoss(args.scale, args.margin)


def _arcface(features, num_classes, args):
    outputs = _decayed(
        keras_pedcc.CosineDense(num_classes, name="head"), features, args
    )
    return outputs, keras_pedcc.ArcFaceLoss(args.scale, args.margin)


def _a_softmax(features, num_classes, args):
    head = keras_pedcc.CosineDense(num_classes, return_norm=True, name="head")
    loss = _annealed(keras_pedcc.ASoftmaxLoss, args)
    return _decayed(head, features, args), loss


def _l_softmax(features, num_classes, args):
    head = keras_pedcc.ProductDense(num_classes, name="head")
    loss = _annealed(keras_pedcc.LSoftmaxLoss, args)
    return _decayed(head, features, args), loss


def _annealed(loss, args):
    """The loss whose annealing is so much faster than published."""
    gamma = loss().annealing_gamma * args.annealing_speed
    return loss(args.multiple, annealing_gamma=gamma)


def _center(features, num_classes, args):
    head = keras_pedcc.CenterDense(num_classes, name="head")
    return _decayed(head, features, args), keras_pedcc.CenterLoss(args.center_weight)


def _cross_entropy(features, num_classes, args):
    loss = (
        keras.losses.CategoricalCrossentropy(from_logits=True)
        if has_soft_labels(args)
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return _plain_outputs(features, num_classes, args), loss


def _hinge(features, num_classes, args):
    return _plain_outputs(features, num_classes, args), keras_pedcc.HingeLoss()


def _plain_outputs(features, num_classes, args):
    head = keras.layers.Dense(num_classes, dtype="float32", name="head")
    return {"features": features, "logits": _decayed(head, features, args)}


def _decayed(head, features, args):
    """Outputs of a head whose class weights decay like the kernels before them."""
    outputs = head(features)
    weight = head.centroids if hasattr(head, "centroids") else head.kernel
    weight.regularizer = keras.regularizers.L2(args.weight_decay / 2)
    return outputs


LOSSES = dict(
    zip(
        settings.LOSSES,
        (
            _pedcc,
            _pedcc_am,
            _am_softmax,
            _arcface,
            _a_softmax,
            _l_softmax,
            _center,
            _cross_entropy,
            _hinge,
        ),
        strict=True,
    )
)
WITH_PEDCC = ("pedcc", "pedcc_am")
ON_COSINES = (*WITH_PEDCC, "am_softmax", "arcface")
ON_PLAIN_LOGITS = ("cross_entropy", "hinge")


def may_fine_tune(args):
    """Whether the centroids are frozen at first, and --fixed decides how long."""
    return args.loss in WITH_PEDCC and args.centroids == "pedcc"


def make_optimizer(args):
    """SGD with momentum; center loss moves its centres at their own rate."""
    sgd = keras.optimizers.SGD(args.learning_rate, momentum=0.9)
    if args.loss != "center":
        return sgd
    return keras_pedcc.FinetuneOptimizer(sgd, keras.optimizers.SGD(args.center_rate))


def has_soft_labels(args):
    """Whether labels come as `(batch, num_classes)`."""
    return bool(args.mixup or args.label_smoothing)
