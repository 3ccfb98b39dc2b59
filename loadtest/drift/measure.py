#!/usr/bin/env python3
"""Does it help to learn faster after a drift? Two models of one stream, one with `on_drift` and one without.

    measure.py --mustela BINARY --data DIR [--seeds N] [--factor F] [--rows R] [STREAM...]

Each table of `data/fetch.py` is posted in the order of its file; from half of it on the labels mean the next class (an abrupt drift),
or nothing changes (`--steady`: what false alarms cost). Both models have the service's defaults and the same seed, and get the same
rows at the same time, so the difference of their online accuracy is that of the reaction. Prints it in points, with the mean and the
standard error over the seeds.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BATCH = 64


def call(base, method, path, body):
    while True:
        request = urllib.request.Request(base + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 429:
                sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")
            time.sleep(float(error.headers.get("retry-after", 1)))


def get(base, path):
    with urllib.request.urlopen(base + path) as answer:
        return json.load(answer)


def rows_of(data, stream, steady):
    manifest = json.loads((data / f"{stream}.json").read_text())
    fields, names = manifest["columns"], manifest["classes"]
    fields = [{key: value for key, value in field.items() if key in ("name", "type") or (key == "optional" and value)} for field in fields]
    schema = {"fields": fields, "target": {"name": "label", "type": "classes", "classes": names}}
    numeric = [field["name"] for field in fields if field["type"] == "numeric"]
    rows = list(csv.DictReader((data / f"{stream}.csv").open()))
    for number, row in enumerate(rows):
        label = names.index(row["label"])
        row["label"] = names[label if steady or number < len(rows) // 2 else (label + 1) % len(names)]
        for column in numeric:
            row[column] = float(row[column]) if row[column] != "" else None
    return schema, rows


def measure(arguments, stream, seed):
    schema, rows = rows_of(arguments.data, stream, arguments.steady)
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.mustela, "serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
            try:
                base = next(word for line in service.stdout for word in line.split() if word.startswith("http://")).rstrip("/")
                call(base, "PUT", "/v1/streams/s", schema)
                plain = {"kind": "network", "stream": "s", "seed": seed}
                reacting = {**plain, "on_drift": {"learning_rate_factor": arguments.factor, "rows": arguments.rows}}
                call(base, "PUT", "/v1/models/plain", plain)
                call(base, "PUT", "/v1/models/reacting", reacting)
                for first in range(0, len(rows), BATCH):
                    call(base, "POST", "/v1/streams/s/batches", {"rows": rows[first:first + BATCH]})
                    while get(base, "/v1/models/plain")["lag_rows"] or get(base, "/v1/models/reacting")["lag_rows"]:
                        time.sleep(0.001)
                views = [get(base, f"/v1/models/{model}") for model in ("plain", "reacting")]
                return [view["online"]["accuracy"] for view in views], [view["drift"]["detected"] for view in views]
            finally:
                service.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mustela", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steady", action="store_true")
    parser.add_argument("streams", nargs="*", default=["bananas", "image-segments", "letters"])
    arguments = parser.parse_args()
    for stream in arguments.streams:
        gains = []
        for seed in range(arguments.seeds):
            (plain, reacting), drifts = measure(arguments, stream, seed)
            gains.append(100 * (reacting - plain))
            print(f"{stream} seed {seed}: {plain:.4f} without, {reacting:.4f} with; drifts {drifts}", flush=True)
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        print(f"{stream}: {statistics.mean(gains):+.2f} ± {error:.2f} points")


if __name__ == "__main__":
    main()
