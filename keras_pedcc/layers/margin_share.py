"""The share of its margin that a loss has while `MarginWarmup` runs."""

from typing import Any

import keras


class MarginShare(keras.metrics.Metric):
    """Holds the share of the margin, for the compiled step of the model around it.

    A compiled step would keep the value of a plain number. Keras hands the state of
    metrics to compiled steps on every backend. This one no batch changes, no log shows,
    and no file keeps.

    Attributes:
        share: The share as a float, 1 while no `MarginWarmup` runs.
        value: The variable that holds it, or `None`: the margin is full.
        callback: The `MarginWarmup` that sets the share.
    """

    callback: Any = None

    def __init__(self) -> None:
        super().__init__(name="margin_share", dtype="float32")
        self._variable = keras.Variable(
            1.0, "float32", trainable=False, aggregation="mean", name="margin_share"
        )
        self.share, self._running = 1.0, False

    @property
    def value(self) -> keras.Variable | None:
        return self._variable if self._running else None

    def start(self) -> None:
        """Makes losses take the share, which is 1 until it is set."""
        self._running = True
        self.set(1.0)

    def set(self, share: float) -> None:
        """Sets the share."""
        self.share = share
        self._variable.assign(share)

    def stop(self) -> None:
        """Gives losses their full margin again."""
        self.set(1.0)
        self._running = False

    def reset_state(self) -> None:
        pass

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        pass

    def result(self) -> dict[str, Any]:
        return {}

    def save_own_variables(self, store: Any) -> None:
        pass

    def load_own_variables(self, store: Any) -> None:
        pass
