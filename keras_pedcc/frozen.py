"""Cosines to frozen centroids, without taking their lengths at every step."""

import keras
from keras import ops

from keras_pedcc.vectors import cosines, inverse_lengths, products

# Below so many entries, taking the lengths costs less than asking whether to.
WORTH_ASKING = 2**20


class UnitRows(keras.layers.Layer):
    """Knows whether the rows of a frozen weight are unit vectors.

    Weights of any length may be set at any time, and a compiled step keeps the flags
    of Python that it was traced with. So this one is a variable, except on PyTorch,
    which compiles nothing; it is told at every `assign` of the weight. It is state
    and no weight: not counted, not saved, not among what `set_weights` takes.
    """

    def __init__(self):
        super().__init__(name="unit_rows", dtype="float32", trainable=False)
        self.built = True
        self.flag = None
        self.known = False

    def follow(self, weight, frozen, known):
        """Learns of each assignment to a weight.

        Args:
            weight: Keras variable, shape `(num_classes, dim)`.
            frozen: Function of nothing; only while it gives True can the rows be known.
            known: bool. Whether they are unit vectors to begin with.
        """
        self.known = known
        if keras.backend.backend() != "torch":
            self.flag = self.add_weight(
                shape=(),
                initializer="ones" if known else "zeros",
                dtype="int32",
                trainable=False,
                name="flag",
            )
        assign = weight.assign

        def assign_and_tell(value):
            result = assign(value)
            self.tell(weight, frozen())
            return result

        weight.assign = assign_and_tell

    def tell(self, weight, frozen):
        """Looks whether the rows are unit vectors, or forgets it unless `frozen`."""
        unit = are_unit(weight) if frozen else False
        if self.flag is None:
            self.known = bool(unit)
        else:
            self.flag.assign(ops.cast(unit, "int32"))

    def choose(self, when_unit, otherwise):
        """The value of one of two functions of nothing."""
        if self.flag is None:
            return when_unit() if self.known else otherwise()
        flag = ops.convert_to_tensor(self.flag)
        return ops.cond(ops.equal(flag, 1), when_unit, otherwise)

    @property
    def weights(self):
        return []

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


def are_unit(rows):
    """Whether each row has length 1, within 5e-7: what rounding to float32 leaves."""
    rows = ops.convert_to_tensor(rows)
    if keras.backend.standardize_dtype(rows.dtype) != "float64":
        rows = ops.cast(rows, "float32")
    squared = ops.sum(ops.square(rows), axis=1)
    return ops.all(ops.abs(squared - 1) < 1e-6)


def frozen_cosines(features, centroids, unit_rows):
    """`cosines(features, centroids)`, with a gradient over the features alone.

    Centroids that are known to be unit vectors are not divided by their length.
    """
    centroids = ops.stop_gradient(centroids)
    if keras.backend.backend() == "torch":
        product = products if unit_rows.known else cosines
        return product(features, centroids)
    if centroids.shape[0] * centroids.shape[1] < WORTH_ASKING:
        return cosines(features, centroids)

    @ops.custom_gradient
    def product(features):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return unit_rows.choose(
                lambda: ops.matmul(upstream, centroids),
                lambda: ops.matmul(upstream * inverse_lengths(centroids), centroids),
            )

        values = unit_rows.choose(
            lambda: products(features, centroids),
            lambda: cosines(features, centroids),
        )
        return values, gradient

    return product(features)
