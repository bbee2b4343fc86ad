"""How evenly centroids are spread, as a picture.

    python examples/centroids.py --num-classes 100 --dim 32

Makes centroids, prints the report on them, and writes `centroids.npz` and a figure:
the cosines of all pairs against the lower bound, the Gram matrix, the Coulomb energy
against the steps of the repelling charges, and as many charges on the sphere of three
dimensions.
"""

import argparse
import json
import pathlib


def parse_args(argv=None):
    """Settings from the command line; wrong ones end the program with a message."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--num-classes", type=int, default=100, help="number of centroids")
    add("--dim", type=int, default=32, help="length of each")
    add("--method", default="auto", help="see keras_pedcc.generate_pedcc")
    add("--seed", type=int, default=0, help="draws rotation or start")
    add("--output-dir", type=pathlib.Path, default="runs/centroids", help="for results")
    args = parser.parse_args(argv)
    if min(args.num_classes, args.dim) < 2 or args.num_classes > 10_000:
        parser.error("--num-classes must be 2 to 10,000 and --dim at least 2")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np

import keras_pedcc

try:
    import matplotlib
    from matplotlib import pyplot as plt
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing: pip install "keras-pedcc[examples]"'
    ) from None

matplotlib.use("Agg")

# Of the descents for the third panel; each starts anew, from the same points.
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(argv=None):
    """Makes, reports and draws; `argv` as on the command line."""
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    centroids = keras_pedcc.generate_pedcc(
        args.num_classes, args.dim, method=args.method, seed=args.seed, verbose=1
    )
    report = keras_pedcc.centroid_report(centroids)
    print(json.dumps(report, indent=1))
    keras_pedcc.save_centroids(args.output_dir / "centroids.npz", centroids)
    draw(args, to_numpy(centroids), report, args.output_dir / "centroids.png")
    print(f"\nWritten to {args.output_dir}:")
    print("  centroids.npz   the centroids: keras_pedcc.load_centroids(path)")
    print("  centroids.png   how they are spread")


def draw(args, centroids, report, path):
    """All four panels."""
    figure = plt.figure(figsize=(12, 9), layout="constrained")
    gram = centroids @ centroids.T
    draw_cosines(figure.add_subplot(221), gram, report, args)
    draw_gram(figure.add_subplot(222), gram)
    draw_energy(figure.add_subplot(223), args)
    draw_sphere(figure.add_subplot(224, projection="3d"), args)
    figure.suptitle(f"{args.num_classes} centroids in {args.dim} dimensions")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_cosines(axis, gram, report, args):
    """Cosines of all pairs, those of random vectors, and the bound."""
    pairs = np.triu_indices(len(gram), 1)
    random = to_numpy(
        keras_pedcc.generate_pedcc(
            args.num_classes, args.dim, method="random", seed=args.seed
        )
    )
    kinds = {"random vectors": random @ random.T, "centroids": gram}
    bins = np.linspace(-1, 1, 201)
    axis.margins(y=0.3)
    for (name, cosines), color in zip(kinds.items(), ("0.75", "#d1495b"), strict=True):
        axis.hist(cosines[pairs], bins, color=color, alpha=0.8, label=name)
    bound = report["largest_cosine_bound"]
    label = f"no largest cosine is below {bound:.4f}"
    axis.axvline(bound, color="black", ls="--", lw=1, label=label)
    ours = report["largest_cosine"]
    axis.axvline(ours, color="#d1495b", lw=1, label=f"largest cosine {ours:.4f}")
    axis.set(xlabel="cosine of a pair", ylabel="pairs", yscale="log")
    axis.legend(loc="upper left")


def draw_gram(axis, gram):
    """The Gram matrix, of at most 500 centroids."""
    shown = gram[:500, :500]
    limit = max(np.abs(shown[~np.eye(len(shown), dtype=bool)]).max(), 1e-3)
    picture = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title="cosine of classes i and j", xlabel="class", ylabel="class")
    axis.figure.colorbar(picture, ax=axis)


def draw_energy(axis, args):
    """Coulomb energy against the steps of the repelling charges."""
    energies = [
        keras_pedcc.centroid_report(
            keras_pedcc.generate_pedcc(
                args.num_classes,
                args.dim,
                method="energy",
                seed=args.seed,
                steps=steps,
                starts=1,
                cache=False,
            )
        )["coulomb_energy"]
        for steps in STEPS
    ]
    axis.plot(STEPS, energies, "o-", color="#30638e")
    axis.set(xlabel="steps of the charges", ylabel="Coulomb energy", xscale="log")


def draw_sphere(axis, args):
    """As many charges on the sphere of three dimensions, in perspective."""
    points = to_numpy(
        keras_pedcc.generate_pedcc(
            min(args.num_classes, 300), 3, method="energy", seed=args.seed
        )
    )
    u, v = np.mgrid[0 : 2 * np.pi : 41j, 0 : np.pi : 21j]
    globe = np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v)
    axis.plot_wireframe(*globe, color="0.9", lw=0.5)
    axis.scatter(*points.T, s=30, color="#30638e", depthshade=True)
    axis.set_box_aspect((1, 1, 1), zoom=1.5)
    axis.set_title(f"{len(points)} charges at rest in three dimensions")
    axis.set_axis_off()


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


if __name__ == "__main__":
    main()
