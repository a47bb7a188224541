#!/usr/bin/env python3
"""Train a small classifier of handwritten digits, and say how it goes.

Reads MNIST (the four IDX files, plain or gzipped) from --data. Without it, it trains on digits that it draws itself, so
that it works with no download. With the same --seed two runs print the same lines: a run that was migrated in the
middle must not differ from one that was not.

Needs nothing but Python 3.
"""

import argparse
import gzip
import math
import pathlib
import random
import struct
import sys

CLASSES = 10
GLYPHS = (
    "0110 1001 1001 1001 0110", "0010 0110 0010 0010 0111", "1110 0001 0110 1000 1111",
    "1110 0001 0110 0001 1110", "1001 1001 1111 0001 0001", "1111 1000 1110 0001 1110",
    "0110 1000 1110 1001 0110", "1111 0001 0010 0100 0100", "0110 1001 0110 1001 0110",
    "0110 1001 0111 0001 0110",
)
SIDE = 8


def drawn_digit(dice):
    """A digit of GLYPHS near the middle, with noise: (pixels, label)."""
    label = dice.randrange(CLASSES)
    rows = GLYPHS[label].split()
    left, top = 2 + dice.randrange(2), 1 + dice.randrange(2)
    pixels = [dice.gauss(0.0, 0.2) for _ in range(SIDE * SIDE)]
    for y, row in enumerate(rows):
        for x, ink in enumerate(row):
            pixels[(top + y) * SIDE + left + x] += int(ink)
    return pixels, label


def read_idx(path):
    """The dimensions and bytes of an IDX file (http://yann.lecun.com/exdb/mnist/, "the IDX file format")."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        zero, kind, rank = struct.unpack(">HBB", file.read(4))
        if zero != 0 or kind != 8:
            sys.exit(f"{path} is no IDX file of bytes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        data = file.read()
    if len(data) != math.prod(shape):
        sys.exit(f"{path} is cut short: {len(data)} of {math.prod(shape)} bytes")
    return shape, data


def load_mnist(directory):
    """A function that draws a random training example: (pixels, label); and the number of pixels."""

    def find(name):
        for suffix in ("", ".gz"):
            path = pathlib.Path(directory, name + suffix)
            if path.exists():
                return path
        sys.exit(f"{directory} has no {name}: put MNIST's IDX files there, or leave out --data")

    shape, images = read_idx(find("train-images-idx3-ubyte"))
    _, labels = read_idx(find("train-labels-idx1-ubyte"))
    size = shape[1] * shape[2]

    def example(dice):
        index = dice.randrange(shape[0])
        pixels = images[index * size:(index + 1) * size]
        return [pixel / 255.0 for pixel in pixels], labels[index]

    return example, size


def softmax(scores):
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="directory with MNIST's IDX files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="steps in an epoch")
    parser.add_argument("--batch", type=int, default=16, help="examples in a step")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate")
    parser.add_argument("--momentum", type=float, default=0.9)
    options = parser.parse_args()

    dice = random.Random(options.seed)
    example, size = load_mnist(options.data) if options.data else (drawn_digit, SIDE * SIDE)
    weights = [[dice.gauss(0.0, 0.01) for _ in range(size + 1)] for _ in range(CLASSES)]
    # The optimizer's state: lost in a restart, kept in a migration.
    speeds = [[0.0] * (size + 1) for _ in range(CLASSES)]

    for epoch in range(1, options.epochs + 1):
        for step in range(1, options.steps + 1):
            slopes = [[0.0] * (size + 1) for _ in range(CLASSES)]
            loss, right = 0.0, 0
            for _ in range(options.batch):
                pixels, label = example(dice)
                inputs = pixels + [1.0]
                chances = softmax([sum(map(float.__mul__, row, inputs)) for row in weights])
                loss -= math.log(max(chances[label], 1e-12)) / options.batch
                right += chances.index(max(chances)) == label
                for digit, chance in enumerate(chances):
                    error = (chance - (digit == label)) / options.batch
                    slopes[digit] = [slope + error * value for slope, value in zip(slopes[digit], inputs)]
            for digit in range(CLASSES):
                speeds[digit] = [
                    options.momentum * speed - options.rate * slope
                    for speed, slope in zip(speeds[digit], slopes[digit])
                ]
                weights[digit] = [weight + speed for weight, speed in zip(weights[digit], speeds[digit])]
            accuracy = right / options.batch
            print(f"epoch {epoch} step {step} loss {loss:.12f} accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
