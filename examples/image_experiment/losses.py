"""The losses of the image experiments, and the head that each needs."""

import keras

import keras_pedcc


def _pedcc(features, num_classes, args):
    head = keras_pedcc.PEDCCDense(num_classes, seed=args.centroid_seed, name="head")
    loss = keras_pedcc.PEDCCLoss(
        args.scale, args.margin, args.mse_weight, args.mse_root
    )
    return head(features), loss


def _cross_entropy(features, num_classes, args):
    head = keras.layers.Dense(
        num_classes,
        kernel_regularizer=keras.regularizers.L2(args.weight_decay / 2),
        dtype="float32",
        name="head",
    )
    loss = (
        keras.losses.CategoricalCrossentropy(from_logits=True)
        if has_soft_labels(args)
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return {"features": features, "logits": head(features)}, loss


# Name of a loss: function of features, number of classes and settings that returns
# the outputs of the model and the loss.
LOSSES = {"pedcc": _pedcc, "cross_entropy": _cross_entropy}


def has_soft_labels(args):
    """Whether labels come as `(batch, num_classes)`."""
    return bool(args.mixup or args.label_smoothing)
