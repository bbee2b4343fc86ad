"""Does an index of embeddings survive a new network?

    python experiments/upgrade.py --data-dir FOLDER --result FILE
    python experiments/upgrade.py --result FILE --show [--figure docs/upgrade.png]

An old network is trained on 30 of the 47 characters of EMNIST and on half of their
images; a new one, wider and with a seed of its own, on all. Both embed the test
images, and the features of the new one are searched among those of the old one. The
seed draws the known classes and the halves. Every network is scored once, at its end;
nothing is chosen by the test images.

Parts: `heads` compares the heads, `changes` what else is new about the new network,
`backend` takes old networks that another backend trained (`--cache-dir` holds them),
`reserve` counts the cost of rows without a class, `novelty` tells the classes that
the old network does not know. Runs that the result holds already are not made again.
With `--data lfw` the classes are the people of LFW with enough images.
"""

import argparse
import json
import pathlib
import shlex
import tempfile

PARTS = ("heads", "changes", "backend", "reserve", "novelty")
RESERVES = (50, 100, 1000)  # per cent more rows than classes
CONTRAST = ("frozen", "cross entropy, own starts")
SETTINGS = ("data", "steps", "batch_size", "learning_rate", "dim", "min_images")


def main(argv=None):
    args = parse_args(argv)
    content = read(args)
    if not args.show:
        with tempfile.TemporaryDirectory() as folder:
            args.cache_dir = args.cache_dir or pathlib.Path(folder)
            args.cache_dir.mkdir(parents=True, exist_ok=True)
            complete(content, args)
    show(content, args)


def complete(content, args):
    """Makes the runs that are missing, and writes the result after each."""
    from upgrade_study import tasks

    images = tasks.load(args)
    done = {key_of(run) for run in content["runs"]}
    for seed in args.seeds:
        task = tasks.make_task(images, seed)
        for part in args.parts:
            for name, make in runs_of(part, args).items():
                if (part, name, seed) not in done:
                    run = {"part": part, "name": name, "seed": seed}
                    run |= make(task, seed)
                    print(json.dumps(run)[:200], flush=True)
                    content["runs"].append(run)
                    save(content, args)


def key_of(run):
    return run["part"], run["name"], run["seed"]


def runs_of(part, args):
    """Functions of task and seed that make the runs of a part, by name."""
    from upgrade_study import heads, training

    def upgrade(name, **more):
        old_name, head = heads.UPGRADES[name]
        return lambda task, seed: run(task, old_name, head, seed, args, **more)

    if part == "heads":
        names = args.heads or heads.UPGRADES
        return {name: upgrade(name) for name in names}
    if part == "changes":
        return {
            f"{name}; {what}": upgrade(name, change=change)
            for what, change in training.CHANGES.items()
            if change
            for name in args.heads or CONTRAST
        }
    if part == "backend":
        names = args.heads or CONTRAST
        return {name: upgrade(name, across_backends=True) for name in names}
    if part == "reserve":
        return {f"{share} % more": upgrade("frozen", share=share) for share in RESERVES}
    from upgrade_study import strangers

    return {name: strangers.maker(name, args) for name in heads.OLD}


def run(task, old_name, head, seed, args, *, change=None, share=0, across_backends=0):
    """Trains a new network beside its old one, which may be in the cache."""
    import time

    import keras
    from upgrade_study import measures, training

    old = training.train_old(task, old_name, seed, args)
    backend = keras.backend.backend()
    if across_backends and old["backend"] == backend:
        raise SystemExit(
            f"The old network {old_name!r} in --cache-dir was trained on {backend}, "
            "too. Set KERAS_BACKEND to another one."
        )
    rows = more_rows(task, share, seed, args) if share else None
    begun = time.perf_counter()
    new = training.train_new(task, head, old, seed, args, rows=rows, change=change)
    return {
        "old": old_name,
        "backends": [str(old["backend"]), backend],
        "seconds": round(time.perf_counter() - begun, 1),
        **measures.measures(task, old, new),
    }


def more_rows(task, share, seed, args):
    """The first rows of a set that has more of them, by so many per cent."""
    import keras

    import keras_pedcc

    number = task.num_classes + round(task.num_classes * share / 100)
    rows = keras_pedcc.generate_pedcc(number, args.dim, seed=seed)
    return keras.ops.convert_to_numpy(rows)[: task.num_classes]


def read(args):
    """What the file of the result holds, or an empty result."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    if args.result is None or not args.result.exists():
        return {"commands": [], "settings": settings, "runs": [], "environment": {}}
    content = json.loads(args.result.read_text())
    if content["settings"] != settings and not args.show:
        raise SystemExit(
            f"{args.result} has runs with other settings: {content['settings']}. "
            "Give them again, or name another file."
        )
    return content


def save(content, args):
    """Writes the result whole, with the command and the environment of its backend."""
    import keras
    from image_experiment.reporting import write_whole

    from benchmarks.environment import environment

    command = command_of(args)
    if command not in content["commands"]:
        content["commands"].append(command)
    content["environment"][keras.backend.backend()] = environment()
    if args.result is not None:
        write_whole(args.result, json.dumps(content, indent=1))


def command_of(args):
    """The command line, but for the folders and the file."""
    import keras

    flags = [
        f"--{name.replace('_', '-')} {' '.join(map(quoted, as_list(value)))}"
        for name, value in vars(args).items()
        if name in (*SETTINGS, "seeds", "parts", "heads") and value is not None
    ]
    backend = f"KERAS_BACKEND={keras.backend.backend()}"
    return " ".join([backend, "python experiments/upgrade.py", *flags])


def quoted(value):
    return shlex.quote(str(value))


def as_list(value):
    return value if isinstance(value, list) else [value]


def show(content, args):
    """Prints the tables in Markdown, and draws the figure."""
    from upgrade_study import tables

    for title, text in tables.blocks(content["runs"]).items():
        print(f"{title}\n\n{text}")
    if args.figure:
        from upgrade_study import figure

        figure.draw(content["runs"], args.figure)


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=("emnist47", "lfw"), default="emnist47")
    add("--data-dir", type=pathlib.Path, help="folder with its .npz file")
    add("--parts", nargs="+", choices=PARTS, default=["heads"])
    add(
        "--heads",
        nargs="+",
        help="the parts of heads, changes and backend with only these",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=400)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=0.05)
    add("--dim", type=int, default=64, help="length of the features")
    add("--min-images", type=int, default=20, help="of a person of LFW")
    add("--cache-dir", type=pathlib.Path, help="keeps the old networks' outputs")
    add("--result", type=pathlib.Path, help="JSON file to write, after each run")
    add("--show", action="store_true", help="make no runs, print tables")
    add("--figure", type=pathlib.Path, help="PNG file to draw")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "dim", "min_images"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


if __name__ == "__main__":
    main()
