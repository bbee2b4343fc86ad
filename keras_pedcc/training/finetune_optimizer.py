"""The optimizer that gives the centroids a learning rate of their own."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Self

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.internals import RefusesSwapping
from keras_pedcc.layers.centroid_variables import is_centroids
from keras_pedcc.training.shares import (
    Share,
    Untracked,
    check_inner,
    check_number,
    take,
    warn_of_no_gradient,
)


def _of_backbone(name: str) -> Any:
    """A setting that is the backbone's, as the rest of Keras sees it."""

    def read(self: "FinetuneOptimizer") -> Any:
        return getattr(self.optimizer, name)

    def write(self: "FinetuneOptimizer", value: Any) -> None:
        if "optimizer" in vars(self):  # not while Keras' constructor sets its defaults
            setattr(self.optimizer, name, value)

    return property(read, write, doc=f"`{name}` of the backbone's optimizer.")


@keras.saving.register_keras_serializable("keras_pedcc")
class FinetuneOptimizer(RefusesSwapping, keras.optimizers.Optimizer):
    """Hands the centroids to one optimizer and every other variable to another.

    `FinetuneCallback` puts it around the optimizer of `compile()`; there is
    seldom a reason to make one by hand. To the rest of Keras it looks like the
    backbone's optimizer: `learning_rate`, `iterations`, `weight_decay`, clipping,
    averaging and accumulation are the backbone's, so that schedules and callbacks
    act on it; the centroids have those of their own optimizer. The loss scale and
    what is excluded from weight decay are set in both.

    Centroids are the weight of a `PEDCCDense` and the centers of a `CenterDense`. The
    optimizer is built with them whether or not they are trained at the time.
    Its variables therefore stay the same when they are unfrozen, and a
    checkpoint of either side loads on the other. A step in which one of the two
    parts has no gradient leaves that part alone.

    Args:
        optimizer: `keras.optimizers.Optimizer` of the backbone. For mixed precision
            put a `LossScaleOptimizer` around the `FinetuneOptimizer`, not inside;
            `compile` does so itself.
        centroid_optimizer: `keras.optimizers.Optimizer` of the centroids, another
            object.
        centroid_specs: `[path, shape, dtype]` of each centroid variable, from a
            saved config. A loaded model builds its optimizer with the trainable
            variables only; this tells which others will come. Defaults to `None`.
        name: Name of the optimizer. Defaults to `"finetune"`.

    Raises:
        TypeError: One of the two is no optimizer.
        ValueError: One of the two is a `LossScaleOptimizer`, or both are one object.

    Example:

    >>> sgd = keras.optimizers.SGD
    >>> optimizer = keras_pedcc.FinetuneOptimizer(sgd(0.1, momentum=0.9), sgd(1e-3))
    >>> model.compile(optimizer, keras_pedcc.PEDCCLoss())
    """

    built: bool

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        centroid_optimizer: keras.optimizers.Optimizer,
        centroid_specs: list[list[Any]] | None = None,
        name: str = "finetune",
    ) -> None:
        check_inner("optimizer", optimizer)
        check_inner("centroid_optimizer", centroid_optimizer)
        if optimizer is centroid_optimizer:
            raise ValueError(
                "The backbone and the centroids need an optimizer each. Received: "
                f"optimizer=centroid_optimizer={optimizer!r}. Pass two objects."
            )
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = optimizer
        self.centroid_optimizer = centroid_optimizer
        self.centroid_specs = centroid_specs or []
        self.traced_with = (
            None  # which of its variables were trained, see `FinetuneCallback`
        )
        self._built_with = self._excluded = Untracked([])
        # Not by the property: TensorFlow leaves out to assign what is there already.
        centroid_optimizer.loss_scale_factor = optimizer.loss_scale_factor

    def build(self, variables: list[keras.Variable]) -> None:
        """Builds both optimizers.

        Args:
            variables: The backbone's trainable variables and the centroids, in
                the order of `model.variables`.
        """
        if self.built:
            return
        centroids = self._complete([v for v in variables if is_centroids(v)])
        self.centroid_specs = [[v.path, list(v.shape), v.dtype] for v in centroids]
        if not self.optimizer.built:
            self.optimizer.build([v for v in variables if not is_centroids(v)])
        self.centroid_optimizer.build(centroids)
        # Not by Keras' `build`, which would keep averages and gradients once more.
        self._built_with = Untracked(variables)
        self.built = True

    @property
    def model_variables(self) -> list[keras.Variable]:
        """List of the model's variables that the optimizer was built with."""
        return list(self._built_with.variables)

    def covers(self, variables: Iterable[keras.Variable]) -> bool:
        """Whether the optimizer was built with each of these variables."""
        known = {id(v) for v in self.model_variables}
        return all(id(v) in known for v in variables)

    @property
    def variables(self) -> list[keras.Variable]:
        return (
            super().variables
            + self.optimizer.variables
            + self.centroid_optimizer.variables
        )

    learning_rate = _of_backbone("learning_rate")
    weight_decay = _of_backbone("weight_decay")
    clipnorm = _of_backbone("clipnorm")
    clipvalue = _of_backbone("clipvalue")
    global_clipnorm = _of_backbone("global_clipnorm")
    use_ema = _of_backbone("use_ema")
    ema_momentum = _of_backbone("ema_momentum")
    ema_overwrite_frequency = _of_backbone("ema_overwrite_frequency")
    gradient_accumulation_steps = _of_backbone("gradient_accumulation_steps")

    @property
    def iterations(self) -> keras.Variable:
        # With a frozen backbone its optimizer takes no step.
        alone = self.built and all(is_centroids(v) for v in self.model_variables)
        return (self.centroid_optimizer if alone else self.optimizer).iterations

    @property
    def loss_scale_factor(self) -> float | None:
        return self.optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if "centroid_optimizer" in vars(self):  # as in `_of_backbone`
            self.optimizer.loss_scale_factor = factor
            self.centroid_optimizer.loss_scale_factor = factor

    def exclude_from_weight_decay(
        self,
        var_list: list[keras.Variable] | None = None,
        var_names: list[str] | None = None,
    ) -> None:
        for optimizer in (self.optimizer, self.centroid_optimizer):
            optimizer.exclude_from_weight_decay(var_list, var_names)
        self._excluded = Untracked(var_list or [], var_names or [])

    @contextlib.contextmanager
    def _decay_of(
        self, optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]
    ) -> Iterator[None]:
        """Disables weight decay if every variable is excluded from it.

        Keras' optimizers of PyTorch raise on an empty list.
        """
        decay = optimizer.weight_decay
        if all(self._excluded.matches(variable) for variable in variables):
            optimizer.weight_decay = None
        try:
            yield
        finally:
            optimizer.weight_decay = decay

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Tensor, keras.Variable]]
    ) -> keras.Variable:
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def apply(
        self,
        grads: list[Tensor | None],
        trainable_variables: Iterable[keras.Variable] | None = None,
    ) -> None:
        if len(grads) == 0:
            return
        if trainable_variables is None:
            trainable_variables = self._expected(grads)
        variables = list(trainable_variables)
        self.build(variables)
        shares = self._shares(variables)
        # An optimizer raises if it gets no gradient at all, as it should if both do.
        some = [s for s in shares if any(grads[i] is not None for i in s[1])]
        if some and len(some) < len(shares):
            warn_of_no_gradient(shares, some, variables)
        for optimizer, places in some or shares:
            mine = [variables[i] for i in places]
            with self._decay_of(optimizer, mine):
                optimizer.apply([grads[i] for i in places], mine)

    def stateless_apply(
        self,
        optimizer_variables: list[Tensor],
        grads: list[Tensor],
        trainable_variables: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        if keras.backend.backend() == "tensorflow" or not self.built:
            return super().stateless_apply(  # which raises
                optimizer_variables, grads, trainable_variables
            )
        # Keras would ask for a value of every variable the optimizer was built
        # with; while the centroids are frozen there is none for them.
        present, state = self._present(), self.variables
        check_number("trainable_variables", trainable_variables, present)
        check_number("optimizer_variables", optimizer_variables, state)
        mapping = [
            *zip(present, trainable_variables, strict=True),
            *zip(state, optimizer_variables, strict=True),
        ]
        with keras.StatelessScope(mapping) as scope:
            self.apply(grads, present)
        values = [scope.get_current_value(v) for v in present]
        return values, [scope.get_current_value(v) for v in state]

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        for optimizer, places in self._shares(var_list):
            optimizer.finalize_variable_values([var_list[i] for i in places])

    def set_weights(self, weights: list[ArrayLike]) -> None:
        if not self.built:
            return super().set_weights(weights)  # which raises
        check_number("weights", weights, self.variables)
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        # Keras saves the two optimizers itself, as parts of this one.
        for i, variable in enumerate(super().variables):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        own = super().variables
        if len(store.keys()) != len(own):
            warnings.warn(
                "A `FinetuneOptimizer` takes the state of another one only. Received: "
                f"{len(store.keys())} variables of optimizer {self.name!r}, instead of "
                f"{len(own)}. The state is left as it is.",
                stacklevel=2,
            )
            return
        for i, variable in enumerate(own):
            variable.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "optimizer": serialize(self.optimizer),
            "centroid_optimizer": serialize(self.centroid_optimizer),
            "centroid_specs": [list(spec) for spec in self.centroid_specs],
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        for part in ("optimizer", "centroid_optimizer"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        return cls(**config)

    def _present(self) -> list[keras.Variable]:
        return [v for v in self.model_variables if v.trainable]

    def _expected(self, grads: list[Tensor | None]) -> list[keras.Variable]:
        """The variables that gradients without names belong to."""
        if not self.built:
            raise ValueError(
                "The optimizer must be built before gradients can come without their "
                f"variables. Received: {len(grads)} gradients, with trainable_variables"
                "=None. Pass the variables too, or call `build` with them."
            )
        check_number("grads", grads, self._present())
        return self._present()

    def _shares(self, variables: list[keras.Variable]) -> list[Share]:
        """Each optimizer that has variables here, with their places."""
        marks = [self._is_centroids(v) for v in variables]
        pair = ((self.optimizer, False), (self.centroid_optimizer, True))
        shares = [
            (o, [i for i, m in enumerate(marks) if m == kind]) for o, kind in pair
        ]
        return [(optimizer, places) for optimizer, places in shares if places]

    def _is_centroids(self, variable: keras.Variable) -> bool:
        if isinstance(variable, keras.Variable):
            return is_centroids(variable)
        # As Keras' optimizers, this takes the variables of TensorFlow itself, too.
        return any(
            is_centroids(v) and v.value is variable for v in self.model_variables
        )

    def _complete(self, centroids: list[keras.Variable]) -> list[keras.Variable]:
        """`centroids`, with a stand-in of the same shape for each that is missing.

        And of the same name: a distribution cuts it over devices like the centroids.
        """
        if len(centroids) >= len(self.centroid_specs):
            return centroids
        left = list(centroids)
        return [take(left, *spec) for spec in self.centroid_specs]
