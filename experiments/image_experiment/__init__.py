"""What the image experiments share: data, networks, recipe, reporting.

Read in this order: `settings` (every flag, with the paper's value as default),
`data`, `batches` (order and augmentation), `networks`, `training`, `reporting`,
`figures`. `run` puts them together; `../emnist.py` and `../cifar100.py` call it.
`comparisons` is what the tables of losses share; `gradients` and `feature_figures` are
what `../feature_space.py` has beside.
"""
