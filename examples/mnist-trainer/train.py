#!/usr/bin/env python3
"""Train a convolutional network on handwritten digits, and say how it goes.

Reads MNIST (its IDX files, plain or gzipped) from --data. Without it, it trains on the digits that scikit-learn ships
(1797 of them, 8 x 8), so that it works with no download.

Weights, Adam's moments, the seeds of dropout, the order of the examples and what the loader has prepared are in memory only. With
the same --seed two runs print the same lines: a run that was migrated in the middle must not differ from one that was not.
"""

import argparse
import gzip
import math
import os
import pathlib
import queue
import struct
import sys
import threading
import time

# Set before the import of keras, which reads it once.
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras  # noqa: E402
import numpy as np  # noqa: E402

CLASSES = 10
SIDE = 28
# Number of batches that the loader prepares in advance.
AHEAD = 4


def read_idx(path):
    """An IDX file of bytes (http://yann.lecun.com/exdb/mnist/, "the IDX file format")."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        zero, kind, rank = struct.unpack(">HBB", file.read(4))
        if zero != 0 or kind != 8:
            sys.exit(f"{path} is no IDX file of bytes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        data = file.read()
    if len(data) != math.prod(shape):
        sys.exit(f"{path} is cut short: {len(data)} of {math.prod(shape)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def find_mnist(directory, name):
    for suffix in ("", ".gz"):
        path = pathlib.Path(directory, name + suffix)
        if path.exists():
            return path
    sys.exit(f"{directory} has no {name}: put MNIST's IDX files there, or leave out --data")


def load_mnist(directory):
    images = read_idx(find_mnist(directory, "train-images-idx3-ubyte"))
    labels = read_idx(find_mnist(directory, "train-labels-idx1-ubyte"))
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels):
        sys.exit(f"{directory} does not hold MNIST: {images.shape} images, {len(labels)} labels")
    return images.astype(np.float32) / 255.0, labels.astype(np.int32)


def load_digits():
    """scikit-learn's digits, each pixel three times as wide and high, with a margin: as large as those of MNIST."""
    from sklearn.datasets import load_digits as bundled

    images, labels = bundled(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8) / 16.0, np.ones((3, 3)))
    return np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.float32), labels.astype(np.int32)


class Loader:
    """Batches for ever, each example once in an epoch, shifted by up to two pixels: prepared in a thread of its own."""

    def __init__(self, images, labels, batch, seed):
        self.images, self.labels, self.batch = images, labels, batch
        self.dice = np.random.default_rng(seed)
        self.ready = queue.Queue(AHEAD)
        threading.Thread(target=self.work, daemon=True).start()

    def __len__(self):
        return len(self.images) // self.batch

    def work(self):
        while True:
            order = self.dice.permutation(len(self.images))
            for at in range(len(self)):
                chosen = order[at * self.batch:(at + 1) * self.batch]
                down, right = self.dice.integers(-2, 3, 2)
                images = np.roll(self.images[chosen], (down, right), (1, 2))
                self.ready.put((images[..., np.newaxis], self.labels[chosen]))

    def next(self):
        return self.ready.get()


def build(rate):
    model = keras.Sequential([
        keras.Input((SIDE, SIDE, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(CLASSES),
    ])
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="directory with MNIST's IDX files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps in an epoch (default: as many as there are batches)")
    parser.add_argument("--batch", type=int, default=32, help="examples in a step")
    parser.add_argument("--rate", type=float, default=0.001, help="learning rate")
    parser.add_argument("--checkpoint", help="file that gets the model after each epoch, .keras at its end")
    parser.add_argument("--times", help="file that gets the time of each step: apart, because it differs from run to run")
    options = parser.parse_args()

    keras.utils.set_random_seed(options.seed)
    images, labels = load_mnist(options.data) if options.data else load_digits()
    loader = Loader(images, labels, options.batch, options.seed)
    model = build(options.rate)
    # The wall clock: a restored container has a time namespace in which the monotonic clock did not advance.
    times = open(options.times, "w", encoding="ascii") if options.times else None

    for epoch in range(1, options.epochs + 1):
        for step in range(1, (options.steps or len(loader)) + 1):
            # For this batch alone: otherwise the metrics would be means over all steps.
            model.reset_metrics()
            loss, accuracy = (float(value) for value in model.train_on_batch(*loader.next()))
            print(f"epoch {epoch} step {step} loss {loss:.9f} accuracy {accuracy:.4f}", flush=True)
            if times:
                print(time.time(), file=times, flush=True)
        if options.checkpoint:
            model.save(options.checkpoint)


if __name__ == "__main__":
    main()
