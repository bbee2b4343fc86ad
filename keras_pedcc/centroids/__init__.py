"""Class centroids: how they are made, measured, assigned and kept."""
