"""Cosines to frozen centroids, without taking their lengths at every step."""

import weakref

import keras
from keras import ops

from keras_pedcc.vectors import cosines, inverse_lengths, products

# Below so many entries, taking the lengths costs less than asking whether to.
WORTH_ASKING = 2**20


class UnitRows(keras.layers.Layer):
    """Knows whether the rows of a frozen weight are unit vectors.

    Weights of any length may be set at any time. A step of JAX looks at all rows
    itself: there that costs little. PyTorch counts what is written into a tensor
    (except through `.data`), so the rows are looked at anew when it has counted on. A
    compiled step of TensorFlow reads a variable, which is set at every `assign` of the
    weight; for what passes that by, the step looks at some rows itself. The variable
    is no weight: not counted, not in files, not among what `set_weights` takes, and
    not to be set from outside.
    """

    def __init__(self):
        super().__init__(name="unit_rows", dtype="float32", trainable=False)
        self.built = True
        self.followed = False
        self.flag = self.seen = None

    def follow(self, weight, frozen, known):
        """Learns of each assignment to a weight.

        Args:
            weight: Keras variable, shape `(num_classes, dim)`.
            frozen: Function of nothing; only while it gives True can the rows be known.
            known: bool. Whether they are unit vectors to begin with.
        """
        self.followed = True
        if keras.backend.backend() != "tensorflow":
            return
        self.flag = self.add_weight(
            shape=(),
            initializer="ones" if known else "zeros",
            dtype="int32",
            trainable=False,
            name="flag",
        )
        self._set_flag = self.flag.assign
        self.flag.assign = lambda value: value
        assign = weight.assign

        def assign_and_tell(value):
            result = assign(value)
            self.tell(weight, frozen())
            return result

        weight.assign = assign_and_tell

    def tell(self, weight, frozen):
        """Looks whether the rows are unit vectors, or forgets it unless `frozen`."""
        if self.flag is not None:
            unit = are_unit(weight) if frozen else False
            self._set_flag(ops.cast(unit, "int32"))

    def know(self, rows):
        """Whether the rows of the weight are unit vectors: a bool, or a tensor."""
        if not self.followed:
            return False
        if keras.backend.backend() == "torch":
            return self._are_seen(rows)
        if self.flag is None:
            return are_unit(rows)
        some = are_unit(rows[:: max(1, rows.shape[0] // 64)])
        return ops.logical_and(ops.convert_to_tensor(self.flag) > 0, some)

    def _are_seen(self, tensor):
        if tensor.is_inference():  # not counted
            return False
        rows, version, unit = self.seen or (lambda: None, None, None)
        if rows() is not tensor or version != tensor._version:
            unit = bool(are_unit(tensor))
            self.seen = weakref.ref(tensor), tensor._version, unit
        return unit

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
    squared = ops.sum(ops.square(rows), axis=1)
    return ops.all(ops.abs(squared - 1) < 1e-6)


def frozen_cosines(features, centroids, unit_rows):
    """`cosines(features, centroids)`, with a gradient over the features alone.

    Centroids that are known to be unit vectors are not divided by their length.
    """
    fixed = ops.stop_gradient(centroids)
    if keras.backend.backend() == "torch":
        product = products if unit_rows.know(centroids) else cosines
        return product(features, fixed)
    if centroids.shape[0] * centroids.shape[1] < WORTH_ASKING:
        return cosines(features, fixed)
    unit = unit_rows.know(fixed)

    @ops.custom_gradient
    def product(features):
        def gradient(*args, upstream=None):
            return _slopes(args[0] if upstream is None else upstream, fixed, unit)

        values = _either(
            unit, lambda: products(features, fixed), lambda: cosines(features, fixed)
        )
        return values, gradient

    return product(features)


def _slopes(upstream, fixed, unit):
    return _either(
        unit,
        lambda: ops.matmul(upstream, fixed),
        lambda: ops.matmul(upstream * inverse_lengths(fixed), fixed),
    )


def _either(unit, when_unit, otherwise):
    if isinstance(unit, bool):
        return when_unit() if unit else otherwise()
    return ops.cond(unit, when_unit, otherwise)
