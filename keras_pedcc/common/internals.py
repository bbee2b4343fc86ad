"""Uses of private API, and what would make each unnecessary."""

from typing import NoReturn

import keras


def let_tapes_watch(variable: keras.Variable) -> None:
    """Makes TensorFlow record gradients of a Keras variable that was created frozen.

    A subclassed model creates its variables after their layer was frozen, and Keras
    then creates them with `tf.Variable(trainable=False)`, for which a tape records
    nothing, ever: a `keras.layers.Dense(trainable=False)` that is unfrozen later is
    not trained either. Unnecessary once Keras leaves out `trainable` there and keeps
    the flag on its own variable alone.
    """
    if keras.backend.backend() == "tensorflow":
        value = variable.value
        for replica in getattr(value, "values", [value]):
            replica._trainable = True


def set_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Replaces the optimizer of a compiled model, also in what the model saves.

    `compile` would do so and make loss and metrics anew. Unnecessary once a saved
    model holds `model.optimizer` and not what `compile` was given.
    """
    model.optimizer = optimizer
    model._compile_config.config["optimizer"] = optimizer


def start_fit_at(model: keras.Model, epoch: int | None) -> None:
    """Makes the running `fit` start at `epoch`, or at its `initial_epoch` if `None`.

    `fit` reads it after `on_train_begin`; Keras' own `BackupAndRestore` sets it.
    Unnecessary once a callback can set the first epoch with public API.
    """
    model._initial_epoch = epoch


class RefusesSwapping:
    """Base of optimizers whose averages `SwapEMAWeights` cannot find.

    Keras looks for the attribute below, and reports `use_ema` where it is missing.
    Unnecessary once the callback gets averages from optimizers with public API.
    """

    use_ema: bool

    @property
    def _model_variables_moving_average(self) -> NoReturn:
        raise ValueError(
            "`SwapEMAWeights` does not work with the `FinetuneOptimizer` that "
            "`FinetuneCallback` puts around an optimizer. Received: use_ema="
            f"{self.use_ema}. Leave `SwapEMAWeights` out: with `use_ema=True`, `fit` "
            "sets the averages when it ends, and every `ema_overwrite_frequency` "
            "steps."
        )
