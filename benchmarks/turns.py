"""Timing of functions that take turns, as a noisy machine asks for."""

import time


def alternate(steps, number, *args, warm_up=5):
    """Seconds of each call of each function, by name, without the first calls."""
    seconds = {name: [] for name in steps}
    for _ in range(number + warm_up):
        for name, step in steps.items():
            begun = time.perf_counter()
            step(*args)
            seconds[name].append(time.perf_counter() - begun)
    return {name: times[warm_up:] for name, times in seconds.items()}
