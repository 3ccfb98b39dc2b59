#!/usr/bin/env python3
"""Posts a small stream to a service until it is told to stop: rows, late labels, queries, and now and then something wrong, so that
every panel has something to show. `check.sh` runs it; by hand: `traffic.py http://127.0.0.1:7070 [SECONDS]`.

It makes the stream `points` and the model `distance` if they are not there. Python's standard library only.
"""

import json
import random
import sys
import time
import urllib.error
import urllib.request

doors = sys.argv[1].rstrip("/")
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
# Well below the scrape interval of 1 s, so that no window of a few scrapes is without news.
GAP_SECONDS = 0.2


def ask(method, path, body, expected):
    request = urllib.request.Request(doors + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    if status not in expected:
        sys.exit(f"{method} {path}: {status} {text.decode(errors='replace')}")


def main():
    run = f"{time.time():.0f}"
    draw = random.Random(7)
    schema = {
        "fields": [{"name": "x", "type": "numeric"}, {"name": "y", "type": "numeric"}],
        "target": {"name": "label", "type": "classes", "classes": ["near", "far"]},
        "row_id": "id",
        "late_labels": {"window_rows": 1000},
    }
    ask("PUT", "/v1/streams/points", schema, {200, 201})
    network = {"architecture": "mlp", "hidden": [16]}
    ask("PUT", "/v1/models/distance", {"kind": "network", "stream": "points", "network": network}, {200, 201})
    ask("PUT", "/v1/models/distance/memory-budget", {"budget": "16MiB"}, {200})

    began, turn = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        rows, labels = [], []
        for number in range(20):
            x, y = draw.uniform(0, 10), draw.uniform(0, 10)
            row = {"id": f"{run}-{turn}-{number}", "x": x, "y": y}
            label = "near" if x * x + y * y < 64 else "far"
            if number % 5 == 0:
                labels.append({"id": row["id"], "label": label})
            else:
                row["label"] = label
            rows.append(row)
        ask("POST", "/v1/streams/points/batches", {"rows": rows}, {202})
        labels[-1]["id"] += "-of-no-row"
        ask("POST", "/v1/streams/points/labels", {"rows": labels}, {202})
        ask("POST", "/v1/models/distance/predict", {"rows": [{"x": 1, "y": 2}]}, {200, 429})
        # A row without its y.
        ask("POST", "/v1/streams/points/batches", {"rows": [{"id": f"{run}-{turn}-x", "x": 1}]}, {422})
        turn += 1
        time.sleep(GAP_SECONDS)


main()
