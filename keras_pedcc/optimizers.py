"""The optimizer that gives the centroids a learning rate of their own."""

import contextlib

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_pedcc")
class FinetuneOptimizer(keras.optimizers.Optimizer):
    """Hands the centroids to one optimizer and every other variable to another.

    `FinetuneCallback` puts it around the optimizer of `compile()`; there is
    seldom a reason to make one by hand. To the rest of Keras it looks like the
    backbone's optimizer: `learning_rate`, `iterations` and the loss scale are
    the backbone's, so that schedules and callbacks act on it, and its clipping,
    weight decay, accumulation and averaging never see the centroids.

    It is built with the centroids whether or not they are trained at the time.
    Its variables therefore stay the same when they are unfrozen, and a
    checkpoint of either side loads on the other.

    Args:
        optimizer: `keras.optimizers.Optimizer` of the backbone.
        centroid_optimizer: `keras.optimizers.Optimizer` of the centroids.
        centroid_specs: `[path, shape, dtype]` of each centroid variable, from a
            saved config. A loaded model builds its optimizer with the trainable
            variables only; this tells which others will come.
        name: Name of the optimizer.
    """

    def __init__(
        self, optimizer, centroid_optimizer, centroid_specs=None, name="finetune"
    ):
        super().__init__(
            learning_rate=0.0, loss_scale_factor=optimizer.loss_scale_factor, name=name
        )
        self.optimizer = optimizer
        self.centroid_optimizer = centroid_optimizer
        self.centroid_specs = centroid_specs or []
        # Not by the property: TensorFlow leaves out to assign what is there already.
        centroid_optimizer.loss_scale_factor = optimizer.loss_scale_factor

    def build(self, variables):
        """Builds both optimizers.

        Args:
            variables: The backbone's trainable variables and the centroids, in
                the order of `model.variables`.
        """
        centroids = self._complete([v for v in variables if is_centroids(v)])
        self.centroid_specs = [[v.path, list(v.shape), v.dtype] for v in centroids]
        if not self.optimizer.built:
            self.optimizer.build([v for v in variables if not is_centroids(v)])
        self.centroid_optimizer.build(centroids)
        super().build(list(variables))

    def covers(self, variables):
        """Whether the optimizer was built with each of these variables."""
        known = {id(v) for v in self._trainable_variables}
        return all(id(v) in known for v in variables)

    @property
    def variables(self):
        return (
            super().variables
            + self.optimizer.variables
            + self.centroid_optimizer.variables
        )

    @property
    def learning_rate(self):
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.optimizer.iterations

    @property
    def loss_scale_factor(self):
        return self._loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor):
        self._loss_scale_factor = factor
        if hasattr(self, "centroid_optimizer"):
            self.optimizer.loss_scale_factor = factor
            self.centroid_optimizer.loss_scale_factor = factor

    def apply(self, grads, trainable_variables=None):
        variables = list(trainable_variables or self._present())
        for optimizer, places in self._shares(variables):
            optimizer.apply([grads[i] for i in places], [variables[i] for i in places])

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        # Keras would ask for a value of every variable the optimizer was built
        # with; while the centroids are frozen there is none for them.
        # Inside a loss-scale optimizer they are variables, which JAX rejects.
        optimizer_variables = [ops.convert_to_tensor(v) for v in optimizer_variables]
        own = len(super().variables)
        middle = own + len(self.optimizer.variables)
        state = {
            self.optimizer: optimizer_variables[own:middle],
            self.centroid_optimizer: optimizer_variables[middle:],
        }
        present = self._present()
        values = list(trainable_variables)
        for optimizer, places in self._shares(present):
            # Zero stands in for what it was built with and is not to train here: a
            # centroid that is frozen still, or one that is now the other's.
            built_with = optimizer._trainable_variables
            zeros = {id(v): ops.zeros(v.shape, v.dtype) for v in built_with}
            mine = {id(present[i]): grads[i] for i in places}
            before = {id(present[i]): values[i] for i in places}
            updated, state[optimizer] = optimizer.stateless_apply(
                state[optimizer],
                [(zeros | mine)[id(v)] for v in built_with],
                [(zeros | before)[id(v)] for v in built_with],
            )
            after = dict(zip(map(id, built_with), updated, strict=True))
            for i in places:
                values[i] = after[id(present[i])]
        updated_state = [*state[self.optimizer], *state[self.centroid_optimizer]]
        return values, [*optimizer_variables[:own], *updated_state]

    def finalize_variable_values(self, var_list):
        for optimizer, places in self._shares(var_list):
            optimizer.finalize_variable_values([var_list[i] for i in places])

    def save_own_variables(self, store):
        # Keras saves the two optimizers itself, as parts of this one.
        for i, variable in enumerate(super().variables):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        for i, variable in enumerate(super().variables):
            variable.assign(store[str(i)])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "optimizer": serialize(self.optimizer),
            "centroid_optimizer": serialize(self.centroid_optimizer),
            "centroid_specs": [list(spec) for spec in self.centroid_specs],
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for part in ("optimizer", "centroid_optimizer"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        return cls(**config)

    def _present(self):
        return [v for v in self._trainable_variables if v.trainable]

    def _shares(self, variables):
        """Each optimizer that has variables here, with their places."""
        marks = [is_centroids(v) for v in variables]
        pair = ((self.optimizer, False), (self.centroid_optimizer, True))
        shares = [
            (o, [i for i, m in enumerate(marks) if m == kind]) for o, kind in pair
        ]
        return [(optimizer, places) for optimizer, places in shares if places]

    def _complete(self, centroids):
        """`centroids`, with a stand-in of the same shape for each that is missing.

        And of the same name: a distribution cuts it over devices like the centroids.
        """
        if len(centroids) >= len(self.centroid_specs):
            return centroids
        found = {v.path: v for v in centroids}
        return [
            found[path]
            if path in found
            else keras.Variable(
                "zeros", shape, dtype, trainable=False, name=path.split("/")[-1]
            )
            for path, shape, dtype in self.centroid_specs
        ]


def is_centroids(variable):
    """Whether a variable is the centroids of a `PEDCCDense`."""
    return getattr(variable, "is_centroids", False)


def strategy_scope(model):
    """The scope that a model was made in, in which its variables must be made."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow only
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
