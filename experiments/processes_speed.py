"""What do two processes on two cores give, beside one?

python experiments/processes_speed.py             about 12 minutes on two idle cores
python experiments/processes_speed.py --quick     a look: one round of the smaller model, a minute
Each contestant is `lm train` of one experiment on Python's standard library: one process with both cores (what a laptop
does), one that may use one core, one with two devices on both cores, and two processes of one device and one core each,
whose sums go over a socket. Contestants take turns; a turn's steps a second are those of its last half, and every ratio
is to the first contestant of the same round: the median over rounds, with the least and the greatest.
Expected: below 1, since one process shares its cores' memory and exchanges nothing: experiments/RESULTS.md; figure
experiments/figures/processes_speed.svg
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.errors import require
from lm.figures import STYLE, save

FIGURE = Path(__file__).parent / "figures" / "processes_speed.svg"
STEPS = {128: 120, 384: 24}
"""Steps of a turn, by the model's width."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way of using two cores."""

    name: str
    processes: int
    devices: int
    """Of each process."""
    cores: int
    """That each process may use."""


CONTESTANTS = (
    Contestant("1 process, 2 cores", 1, 1, 2),
    Contestant("1 process, 1 core", 1, 1, 1),
    Contestant("1 process, 2 devices", 1, 2, 2),
    Contestant("2 processes", 2, 1, 1),
)


def experiment(width: int) -> lm.Experiment:
    """A transformer of 4 layers and this width, which reads 16 windows of 128 bytes a step."""
    model = lm.ModelConfig(layers=4, width=width, heads=4, context=128, dtype="float32")
    steps = STEPS[width]
    train = lm.TrainConfig(
        steps=steps, batch=16, log_every=steps // 2, eval_every=steps, checkpoint_every=steps, eval_tokens=2048
    )
    return lm.Experiment(name="run", model=model, data=lm.DataConfig(tokenizer="bytes"), train=train)


def turn(who: Contestant, width: int, folder: Path) -> float:
    """Steps a second in the last half of one training."""
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        Path(place, "config.py").write_text(
            f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})\n"
            f"import processes_speed\nexperiment = processes_speed.experiment({width})\n"
        )
        for number in range(who.processes):
            environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={who.devices}"}
            if who.processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(who.processes), "JAX_PROCESS_ID": str(number),
                }  # fmt: skip
            mine = ",".join(str(core) for core in cores[number : number + who.cores])
            command = ["taskset", "--cpu-list", mine, sys.executable, "-m", "lm.cli", "train", "config.py", "--json"]
            started.append(
                subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        said = [process.communicate()[0] for process in started]
    require(all(process.returncode == 0 for process in started), f"{who.name}: a process failed")
    return json.loads(said[0])["tokens_per_second"] / experiment(width).batch_tokens


def measure(widths: list[int], rounds: int, folder: Path) -> dict[int, dict[str, list[float]]]:
    """Steps a second of each contestant in every round, by width. A first round compiles, and is not counted."""
    found = {width: {who.name: [] for who in CONTESTANTS} for width in widths}
    for width in widths:
        for number in range(rounds + 1):
            for who in CONTESTANTS:
                speed = turn(who, width, folder)
                if number:
                    found[width][who.name].append(speed)
                    print(f"width {width}, round {number}: {who.name}: {speed:.2f} steps/s", file=sys.stderr)
    return found


def ratios(speeds: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """The median, least and greatest ratio of each contestant's speed to the first's in the same round."""
    plain = speeds[CONTESTANTS[0].name]
    found = {}
    for name, each in speeds.items():
        paired = [speed / other for speed, other in zip(each, plain, strict=True)]
        found[name] = statistics.median(paired), min(paired), max(paired)
    return found


def table(found: dict[int, dict[str, list[float]]]) -> str:
    """The rows for RESULTS."""
    lines = ["| width | contestant | steps/s, median | beside the first | least to greatest |", "|---|---|---|---|---|"]
    for width, speeds in found.items():
        for name, (middle, least, greatest) in ratios(speeds).items():
            speed = statistics.median(speeds[name])
            lines.append(f"| {width} | {name} | {speed:.2f} | {middle:.2f} | {least:.2f} to {greatest:.2f} |")
    return "\n".join(lines)


def draw(found: dict[int, dict[str, list[float]]]) -> plt.Figure:
    """A bar for each contestant and width."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained", figsize=(7.2, 4))
        height = 0.8 / len(found)
        for place, (width, speeds) in enumerate(found.items()):
            middle, least, greatest = np.array(list(ratios(speeds).values())).T
            spread = [middle - least, greatest - middle]
            places = [number + place * height for number in range(len(middle))]
            axes.barh(places, middle, height, xerr=spread, label=f"width {width}", error_kw={"linewidth": 1})
        middles = [number + 0.4 - height / 2 for number in range(len(CONTESTANTS))]
        axes.set_yticks(middles, [who.name for who in CONTESTANTS])
        axes.axvline(1, color="0.4", linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel("steps a second beside one process with both cores")
        figure.legend(loc="outside upper center", ncols=len(found))
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smaller model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=FIGURE)
    options = parser.parse_args(arguments)
    require(hasattr(os, "sched_getaffinity"), "cores are chosen as Linux does it")
    require(len(os.sched_getaffinity(0)) >= 2, "two processes want two cores")
    with tempfile.TemporaryDirectory() as folder:
        widths, rounds = ([128], 1) if options.quick else (list(STEPS), options.rounds)
        found = measure(widths, rounds, Path(folder))
    print(table(found))
    save(draw(found), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
