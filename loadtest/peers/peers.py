#!/usr/bin/env python3
"""What other libraries make of the streams of `data/fetch.py`, row by row: predict, then learn.

    peers.py --data DIR --out FILE [--seeds N] [STREAM...]

Writes {"about": ..., "streams": {stream: {method: {seed: {accuracy, rows, rows_per_second, bytes, seconds}}}}}, each cell as soon as
it is there, and passes over those that the file has. Every cell runs in a process of its own.

* accuracy: prequential, of all rows; a row for which a method has no answer yet counts as wrong.
* rows_per_second: by the processor's time of the process, as other work may share the machine; reading the file is not in it, the
  library's own way of taking a row (a dict; for Vowpal Wabbit a line of text) is.
* bytes: how far the resident memory rose above what it was before the method was made, looked at every 100 rows.

Every method has its library's own settings, but for what METHODS says. Forests learn the first 20,000 rows, and all methods the
first 50,000 of flights.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

STREAMS = ["phishing", "bananas", "image-segments", "digits", "letters", "shuttle", "flights"]
FOREST_ROWS = 20_000
STREAM_ROWS = {"flights": 50_000}

#: A row: numbers and words by column.
Row = dict[str, Any]


class Learner(Protocol):
    """What every method is made into."""

    def predict(self, row: Row) -> str | None:
        """The label, if there is an answer yet."""

    def learn(self, row: Row, label: str) -> None:
        """One row with its label."""


@dataclass(frozen=True)
class Method:
    """How a method is made of the stream's manifest and a seed."""

    make: Callable[[dict[str, Any], int], Learner]
    settings: str
    random: bool = False
    rows_max: int | None = None


class River:
    """One of River's classifiers."""

    def __init__(self, model: Any) -> None:
        self.predict = model.predict_one
        self.learn = model.learn_one


def scaled(model: Any) -> Learner:
    """A linear model behind the usual preparation: numbers standardised as they come, words one-hot."""
    from river import compose, preprocessing

    numbers = compose.SelectType((int, float)) | preprocessing.StandardScaler()
    words = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return River((numbers + words) | model)


def softmax(_: dict[str, Any], __: int) -> Learner:
    """Softmax regression."""
    from river import linear_model

    return scaled(linear_model.SoftmaxRegression())


def logistic(_: dict[str, Any], __: int) -> Learner:
    """Logistic regressions, one for each class."""
    from river import linear_model, multiclass

    return scaled(multiclass.OneVsRestClassifier(linear_model.LogisticRegression()))


def hoeffding(_: dict[str, Any], __: int) -> Learner:
    """One Hoeffding tree."""
    from river import tree

    return River(tree.HoeffdingTreeClassifier())


def adaptive_forest(_: dict[str, Any], seed: int) -> Learner:
    """An adaptive random forest."""
    from river import forest

    return River(forest.ARFClassifier(seed=seed))


def random_patches(_: dict[str, Any], seed: int) -> Learner:
    """Streaming random patches."""
    from river import ensemble

    return River(ensemble.SRPClassifier(seed=seed))


class VowpalWabbit:
    """One against all; a column is a named feature, in a namespace for numbers or in one for words."""

    def __init__(self, manifest: dict[str, Any], _: int) -> None:
        from vowpalwabbit import Workspace

        self.classes: list[str] = manifest["classes"]
        self.number = {label: at + 1 for at, label in enumerate(self.classes)}
        self.vw = Workspace(f"--oaa {len(self.classes)} --quiet")
        named = {column["name"]: column["name"].replace(":", "_").replace(" ", "_") for column in manifest["columns"]}
        self.numbers = [(name, named[name]) for name in named if column_type(manifest, name) == "numeric"]
        self.words = [(name, named[name]) for name in named if column_type(manifest, name) == "categorical"]

    def text(self, row: Row) -> str:
        """The row's features in VW's format."""
        numbers = " ".join(f"{name}:{row[column]}" for column, name in self.numbers)
        words = " ".join(f"{name}={row[column]}" for column, name in self.words)
        return f"|n {numbers}" + (f" |c {words}" if words else "")

    def predict(self, row: Row) -> str | None:
        return self.classes[int(self.vw.predict(self.text(row))) - 1]

    def learn(self, row: Row, label: str) -> None:
        self.vw.learn(f"{self.number[label]} {self.text(row)}")


METHODS = {
    "vw_oaa": Method(VowpalWabbit, "--oaa CLASSES; words as name=value"),
    "river_softmax": Method(softmax, "StandardScaler on numbers, OneHotEncoder on words; SGD at 0.01"),
    "river_logistic_ovr": Method(logistic, "StandardScaler on numbers, OneHotEncoder on words; OneVsRestClassifier; SGD at 0.01"),
    "river_hoeffding_tree": Method(hoeffding, "words as they are"),
    "river_arf": Method(adaptive_forest, "10 trees; words as they are", True, FOREST_ROWS),
    "river_srp": Method(random_patches, "10 trees; words as they are", True, FOREST_ROWS),
}


def column_type(manifest: dict[str, Any], name: str) -> str:
    """Whether a column holds numbers or words."""
    return next(column["type"] for column in manifest["columns"] if column["name"] == name)


def read(data: Path, stream: str, rows_max: int | None) -> tuple[dict[str, Any], list[tuple[Row, str]]]:
    """The manifest and the first rows of a stream, with their labels."""
    manifest = json.loads((data / f"{stream}.json").read_text())
    numeric = {column["name"]: column["type"] == "numeric" for column in manifest["columns"]}
    rows = []
    with (data / f"{stream}.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if len(rows) == rows_max:
                break
            label = line.pop("label")
            rows.append(({name: float(text) if numeric[name] else text for name, text in line.items()}, label))
    return manifest, rows


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(data: Path, stream: str, name: str, seed: int) -> dict[str, Any]:
    """One cell."""
    method = METHODS[name]
    caps = [cap for cap in (method.rows_max, STREAM_ROWS.get(stream)) if cap]
    manifest, rows = read(data, stream, min(caps, default=None))
    method.make(manifest, seed)  # so that the library's own code is loaded before memory is looked at
    before = most = resident()
    learner = method.make(manifest, seed)
    correct, began = 0, time.process_time()
    for at, (row, label) in enumerate(rows):
        correct += learner.predict(row) == label
        learner.learn(row, label)
        if at % 100 == 0:
            most = max(most, resident())
    seconds = time.process_time() - began
    most = max(most, resident())
    return {
        "accuracy": round(correct / len(rows), 5),
        "rows": len(rows),
        "rows_per_second": round(len(rows) / seconds, 1),
        "bytes": most - before,
        "seconds": round(seconds, 2),
    }


def about() -> dict[str, Any]:
    """What the figures stand on."""
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    versions = {name: importlib.metadata.version(name) for name in ("river", "vowpalwabbit", "numpy", "scipy")}
    return {
        "machine": f"{os.cpu_count()} x {model[0]}, shared with other work; Python {platform.python_version()}, {sys.platform}",
        "libraries": versions,
        "methods": {name: f"{method.settings}; all else by default" for name, method in METHODS.items()},
        "rows": f"forests: the first {FOREST_ROWS}; all methods: of flights the first {STREAM_ROWS['flights']}",
        "rows_per_second": "predict and learn, by the processor's time of the process, one thread",
        "bytes": "rise of the resident memory, looked at every 100 rows",
    }


def main() -> None:
    """Fills the file up, the first seed of everything before the others."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, default=Path.home() / ".cache/mustela/data", metavar="DIR")
    words.add_argument("--out", type=Path, metavar="FILE")
    words.add_argument("--seeds", type=int, default=5, help="of methods that are random")
    words.add_argument("--slow-seconds", type=float, default=300, help="a cell that takes longer gets 2 seeds")
    words.add_argument("--cell", nargs=3, metavar=("STREAM", "METHOD", "SEED"), help="measure one cell and print it")
    words.add_argument("streams", nargs="*", metavar="STREAM", help=f"of {', '.join(STREAMS)}; all by default")
    asked = words.parse_args()
    if asked.cell:
        stream, method, seed = asked.cell
        print(json.dumps(measure(asked.data, stream, method, int(seed))))
        return
    if not asked.out:
        words.error("--out is missing")
    document = json.loads(asked.out.read_text()) if asked.out.exists() else {"about": about(), "streams": {}}
    for seed in range(asked.seeds):
        for stream in asked.streams or STREAMS:
            for name, method in METHODS.items():
                cells = document["streams"].setdefault(stream, {}).setdefault(name, {})
                slow = cells.get("0", {}).get("seconds", 0) > asked.slow_seconds
                if str(seed) in cells or (seed > 0 and not method.random) or (seed > 1 and slow):
                    continue
                command = [sys.executable, __file__, "--data", asked.data, "--cell", stream, name, str(seed)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                cells[str(seed)] = json.loads(said.stdout)
                print(stream, name, seed, said.stdout.strip(), flush=True)
                beside = asked.out.with_suffix(".part")
                beside.write_text(json.dumps(document, indent=1) + "\n")
                beside.replace(asked.out)


if __name__ == "__main__":
    main()
