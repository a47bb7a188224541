#!/usr/bin/env python3
"""Draw the losses of a training that was migrated, beside those of one that was not."""

import argparse
import re

import matplotlib

matplotlib.use("Agg")  # No display.
from matplotlib import pyplot as plt  # noqa: E402

LINE = re.compile(r"epoch (\d+) step \d+ loss ([0-9.e+-]+) accuracy ([0-9.]+)")


def read_losses(path):
    with open(path, encoding="ascii") as file:
        found = [LINE.fullmatch(line.strip()) for line in file]
    return [(int(match[1]), float(match[2])) for match in found if match]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("moved", help="what the migrated training printed")
    parser.add_argument("unmoved", help="what the other one printed")
    parser.add_argument("times", help="the --times of the migrated one")
    parser.add_argument("picture", help="the PNG file to write")
    options = parser.parse_args()

    moved, unmoved = read_losses(options.moved), read_losses(options.unmoved)
    with open(options.times, encoding="ascii") as file:
        times = [float(line) for line in file]
    # The freeze is the longest time between two steps.
    gaps = [after - before for before, after in zip(times, times[1:])]
    at = max(range(len(gaps)), key=gaps.__getitem__) + 1
    steps = range(1, len(moved) + 1)

    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 7), sharex=True, height_ratios=(3, 2), layout="constrained")
    above.plot(range(1, len(unmoved) + 1), [loss for _, loss in unmoved], color="tab:orange", linewidth=4, alpha=0.5, label="not moved")
    above.plot(steps, [loss for _, loss in moved], color="tab:blue", linewidth=1, label="moved")
    above.set_ylabel("loss")
    same = "the same" if moved == unmoved else "DIFFERENT"
    above.set_title(f"{len(moved)} steps, migrated after step {at}: the losses are {same}")
    below.plot(steps, [time - times[0] for time in times], color="tab:blue", linewidth=1)
    below.set_ylabel("seconds")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.axvline(at + 0.5, color="tab:red", linestyle="--", linewidth=1)
        for step in steps:
            if step > 1 and moved[step - 1][0] != moved[step - 2][0]:
                axes.axvline(step - 0.5, color="lightgrey", linewidth=1, zorder=0)
    below.annotate(f"between hosts for {gaps[at - 1]:.2f} s", (at + 0.5, times[at] - times[0]), color="tab:red",
                   xytext=(8, -14), textcoords="offset points")
    above.legend(title="grey: epochs")
    figure.savefig(options.picture, dpi=110)
    print(f"migrated after step {at} (epoch {moved[at - 1][0]}), where it stood still for {gaps[at - 1] * 1000:.0f} ms; the losses are {same}")


if __name__ == "__main__":
    main()
