"""The parts of `experiments/upgrade.py`: data, heads, training, measures, tables."""
