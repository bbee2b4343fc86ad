"""The command line of the studies of classes that come later, without Keras."""

import argparse
import pathlib


def parser_of(description):
    """The arguments that do not depend on the images."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--base", type=int, default=60, help="classes of the base session")
    add("--base-images", type=int, default=500, help="of each of them")
    add("--classes", type=int, default=5, help="of each later session")
    add("--images", type=int, default=5, help="of each class there")
    add("--epochs", type=int, default=5, help="of the base session")
    add("--batch-size", type=int, default=250)
    add("--later-steps", type=int, default=100, help="of each later session")
    add("--later-batch", type=int, default=50)
    add("--hidden", type=int, default=512)
    add("--dim", type=int, default=128)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--trial-seed", type=int, default=100)
    return parser
