"""How long the gradient of the loss of one sample is, and how long its features."""

import keras
import numpy as np

import keras_pedcc
from image_experiment.batches import soft_labels
from image_experiment.losses import LOSSES, has_soft_labels
from image_experiment.reporting import read_history, write_history


class GradientLengths(keras.callbacks.Callback):
    """Writes a row of lengths before the first epoch and after each.

    All are means over the same samples, with the network as it predicts:

    - `gradient`: length of the gradient of the loss of one sample over its features,
      as they enter the head, before they are divided by their length;
    - `feature_length`: length of these features;
    - `turning`: the product of both for one sample. For a loss of cosines it is the
      length of the gradient over the unit features, along the sphere, and does not
      change when all features are scaled;
    - `scores`, only where the loss is softmax cross entropy: length of the gradient
      over the output of the head, `softmax(logits) - one_hot(label)`.

    The penalty on the weights is not part of the loss of a sample. A batch
    normalisation of the features counts as the end of FC1, whose bias it replaces:
    over its input the gradient would be inverse to the scale of the weights of FC1,
    which the normalisation takes out again. Its moving statistics take some hundred
    steps to settle; before the first epoch they are 0 and 1.

    Args:
        path: CSV file; rows of an epoch that is trained again are replaced.
        args: Settings of the run.
        images: uint8, shape `(n, height, width, channels)`.
        labels: int32, shape `(n,)`.
    """

    def __init__(self, path, args, images, labels):
        super().__init__()
        self.path, self.args = path, args
        self.images, self.labels = images, labels

    def on_train_begin(self, logs=None):
        self.extractor = feature_extractor(self.model)
        num_classes, dim = self.model.output["logits"].shape[-1], self.args.dim
        self.probe = GradientProbe(self.args, len(self.images), dim, num_classes)

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self._measure(0)

    def on_epoch_end(self, epoch, logs=None):
        self._measure(epoch + 1)

    def _measure(self, epoch):
        features = extract(self.extractor, self.images, self.args.batch_size)
        head = self.model.get_layer("head")
        lengths = self.probe.lengths(head.get_weights(), features, self.labels)
        row = {"epoch": epoch, **{k: float(v.mean()) for k, v in lengths.items()}}
        rows = [r for r in read_history(self.path) if r["epoch"] < epoch]
        write_history(self.path, [*rows, row])


class GradientProbe:
    """Gradients of single samples through a frozen head, on every backend of Keras.

    Keras has no function for gradients that every backend knows. So each of the n
    samples gets an offset, zero at first, between features and head. One step of SGD
    of rate n over the mean of the losses moves it by minus the gradient of the loss
    of this sample. With `mse_root` above 1, where eq. 10 is no mean over samples, it
    is n times the gradient of the loss of all.

    Args:
        args: Settings of the run; its loss and constants are taken.
        samples: int, number of samples n.
        dim: int, length of the features.
        num_classes: int.
    """

    def __init__(self, args, samples, dim, num_classes):
        self.args, self.num_classes = args, num_classes
        inputs = keras.Input(batch_shape=(samples, dim), dtype="float32")
        self.offset = Offset(name="offset")
        outputs, loss = LOSSES[args.loss](self.offset(inputs), num_classes, args)
        self.model = keras_pedcc.PEDCCModel(inputs, outputs)
        self.head = self.model.get_layer("head")
        self.head.trainable = False  # which also takes its penalty out of the loss
        jit = "auto" if args.jit is None else args.jit
        self.model.compile(keras.optimizers.SGD(float(samples)), loss, jit_compile=jit)

    def gradients(self, weights, features, labels):
        """Gradient of the loss of each sample over its features, shape `(n, dim)`."""
        self.head.set_weights(weights)
        self.offset.set_weights([np.zeros_like(features)])
        given = self._targets(labels) if has_soft_labels(self.args) else labels
        self.model.train_on_batch(features, given)
        return -self.offset.get_weights()[0]

    def lengths(self, weights, features, labels):
        """The columns of `GradientLengths` for each sample, as a dict."""
        gradient = row_lengths(self.gradients(weights, features, labels))
        length = row_lengths(features)
        found = {"gradient": gradient, "feature_length": length}
        found["turning"] = gradient * length
        if self.args.loss == "cross_entropy":
            kernel, bias = weights
            scores = score_gradients(features @ kernel + bias, self._targets(labels))
            found["scores"] = row_lengths(scores)
        return found

    def _targets(self, labels):
        return soft_labels(labels, self.num_classes, self.args.label_smoothing)


class Offset(keras.layers.Layer):
    """Adds to each sample of its one batch a trainable vector of its own."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)

    def build(self, input_shape):
        self.values = self.add_weight(shape=input_shape, initializer="zeros")

    def call(self, inputs):
        return inputs + self.values


def score_gradients(logits, targets):
    """`softmax(logits) - targets`, all of shape `(n, num_classes)`."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True) - targets


def row_lengths(rows):
    return np.linalg.norm(rows, axis=1)


def feature_extractor(model):
    """Model from the images to the input of the head, not divided by its length."""
    return keras.Model(model.inputs[0], model.get_layer("head").input)


def extract(extractor, images, batch_size):
    """Features of the images, float32, shape `(n, dim)`."""
    features = extractor.predict(images, batch_size=batch_size, verbose=0)
    return np.asarray(features, "float32")
