"""Images per second in training: PEDCC-Loss beside cross entropy, and plain PyTorch.

    python experiments/throughput.py --data-dir FOLDER

Three trainers of the same network take turns on the same augmented batches: Keras
with PEDCC-Loss, a plain `keras.Model` with cross entropy, both with the accuracy as
their only metric, and, where PyTorch is installed, a plain PyTorch loop with cross
entropy and no metric, for which a thread makes the batches ahead. Reported are the
medians of all rounds after the first, their ratios, and the speed of the input
pipeline alone. On a GPU that JAX shares with PyTorch set
XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import pathlib
import statistics
import sys
import time


def parse_args(argv=None):
    """Settings of this program, and the flags of the run."""
    own = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further flags are those of a run, see cifar100.py --help.",
        allow_abbrev=False,
    )
    own.add_argument("--rounds", type=int, default=6)
    own.add_argument("--steps", type=int, default=20, help="of each round")
    own.add_argument("--torch-compile", action="store_true", help="of plain PyTorch")
    own.add_argument("--result", type=pathlib.Path, help="file for the numbers")
    ours, rest = own.parse_known_args(argv)
    if min(ours.rounds, ours.steps) < 1:
        own.error("--rounds and --steps must be at least 1.")
    return ours, rest


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
from cifar100 import CIFAR100
from image_experiment import data, networks, settings, training
from image_experiment.batches import TrainingBatches
from image_experiment.data import BadInputError
from image_experiment.losses import make_optimizer

from benchmarks.environment import environment


def main(argv=None):
    """Measures and reports; returns the exit code."""
    ours, rest = parse_args(argv)
    try:
        result = run(ours, settings.parse(CIFAR100, rest))
    except BadInputError as error:
        print(f"throughput: error: {error}", file=sys.stderr)
        return 2
    report(result)
    if ours.result:
        ours.result.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def run(ours, args):
    """All numbers, and what they depend on."""
    training.use_devices(args)
    images = data.load(CIFAR100.source, args.data_dir, limit=args.limit)
    batches = make_batches(args, images, ours.steps)
    trainers = make_trainers(args, images, ours)
    return {
        "images_per_second": measure(trainers, batches, ours.rounds),
        "input_pipeline": pipeline_speed(batches),
        "settings": settings.of_the_run(args),
        "environment": environment(),
    }


def make_batches(args, images, steps):
    """The batches of one round."""
    number = min(len(images.y_train), steps * args.batch_size)
    return TrainingBatches(
        images.x_train[:number],
        images.y_train[:number],
        args.batch_size,
        seed=args.seed,
        pad=args.pad,
        flip=args.flip,
        workers=args.workers,
    )


def make_trainers(args, images, ours):
    """Functions that train on all batches once, by name."""
    trainers = {}
    for loss in ("pedcc", "cross_entropy"):
        chosen = argparse.Namespace(**{**vars(args), "loss": loss})
        trainers[f"keras {loss}"] = keras_trainer(keras_model(chosen, images))
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: its row is left out.")
        return trainers
    trainers["pytorch cross_entropy"] = torch_trainer(torch, args, images, ours)
    return trainers


def keras_model(args, images):
    """The model of a run without its extra metrics; cross entropy has a plain one."""
    made = training.make_model(CIFAR100, args, images)
    plain = args.loss == "cross_entropy"
    model = keras.Model(made.input, made.output["logits"]) if plain else made
    model.compile(
        make_optimizer(args),
        made.loss,
        metrics=["accuracy"],
        jit_compile=made.jit_compile,
    )
    return model


def keras_trainer(model):
    return lambda batches: model.fit(batches, verbose=0, shuffle=False)


def torch_trainer(torch, args, images, ours):
    """The same network and recipe, in plain PyTorch."""
    gpu = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = gpu
    device = "cuda" if gpu else "cpu"
    step = torch_step(torch, device, args, images, ours)

    def ready(batch):
        x, y = map(torch.from_numpy, batch)
        return (x.pin_memory(), y.pin_memory()) if gpu else (x, y)

    def train(batches):
        for x, y in made_ahead(lambda k: ready(batches[k]), len(batches)):
            x = x.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
            step(x, y.to(device, non_blocking=True).long())
        if gpu:
            torch.cuda.synchronize()

    return train


def torch_step(torch, device, args, images, ours):
    """Function that takes one step on images and labels."""
    network = torch_network(torch.nn, args, images).to(device)
    if device == "cuda":
        network = network.to(memory_format=torch.channels_last)
    run = torch.compile(network) if ours.torch_compile else network
    rate, decay = args.learning_rate, args.weight_decay
    optimizer = torch.optim.SGD(
        network.parameters(), rate, momentum=0.9, weight_decay=decay
    )
    dtype = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    policy = dtype[args.mixed_precision]

    def step(x, y):
        with torch.autocast(device, policy, enabled=policy is not None):
            loss = torch.nn.functional.cross_entropy(run(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def made_ahead(make, number, ahead=4):
    """Yields `make(0)` to `make(number - 1)`; a thread makes up to `ahead` before."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        jobs = (pool.submit(make, k) for k in range(number))
        coming = collections.deque(itertools.islice(jobs, ahead))
        while coming:
            made = coming.popleft().result()
            coming.extend(itertools.islice(jobs, 1))
            yield made


def torch_network(nn, args, images):
    """Layers as in `image_experiment.networks.vgg`, with a linear classifier."""
    stages = [(1, CIFAR100.stem), *CIFAR100.blocks]
    channels, parts = images.x_train.shape[-1], [_standardizer(nn, images)]
    for number, (convolutions, filters) in enumerate(stages):
        filters = networks.scaled(filters, args.width)
        for _ in range(convolutions):
            parts += [
                nn.Conv2d(channels, filters, 3, padding=1, bias=False),
                nn.BatchNorm2d(filters),
                nn.PReLU(filters),
            ]
            channels = filters
        if number:
            parts.append(nn.MaxPool2d(2))
    side = images.x_train.shape[1] // 2 ** len(CIFAR100.blocks)
    parts += [nn.Flatten(), nn.Linear(channels * side**2, args.dim, bias=False)]
    parts += [nn.BatchNorm1d(args.dim, affine=False)]
    return nn.Sequential(*parts, nn.Linear(args.dim, CIFAR100.source.num_classes))


def _standardizer(nn, images):
    """Batch normalisation that stays at the statistics of the training pixels."""
    mean, variance = networks.pixel_statistics(images.x_train)
    layer = nn.BatchNorm2d(len(mean), affine=False, momentum=0.0)
    layer.running_mean.copy_(layer.running_mean.new_tensor(mean))
    layer.running_var.copy_(layer.running_var.new_tensor(variance))
    layer.train = lambda mode=True: layer
    return layer.eval()


def measure(trainers, batches, rounds):
    """Images per second of each trainer: median of the rounds after the first."""
    images, seconds = len(batches) * batches.batch_size, {name: [] for name in trainers}
    for number in range(rounds + 1):
        batches.set_epoch(number)
        for name, train in trainers.items():
            start = time.perf_counter()
            train(batches)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: images / statistics.median(each[1:]) for name, each in seconds.items()
    }


def pipeline_speed(batches):
    """Images per second that one thread makes, with nothing else to do."""
    start = time.perf_counter()
    for number in range(len(batches)):
        batches[number]
    return len(batches) * batches.batch_size / (time.perf_counter() - start)


def report(result):
    speeds = result["images_per_second"]
    for name, speed in speeds.items():
        ratio = speeds["keras pedcc"] / speed
        print(f"{name:22} {speed:10,.0f} images/s; PEDCC is at {ratio:.2f} of it")
    print(f"{'input pipeline alone':22} {result['input_pipeline']:10,.0f} images/s")


if __name__ == "__main__":
    raise SystemExit(main())
