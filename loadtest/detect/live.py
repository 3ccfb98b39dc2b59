#!/usr/bin/env python3
"""A detector learns a new attack while it answers: AUROC on pictures that it never sees, after every post of examples.

    live.py BINARY --models DIR --benign DIR --adversarial DIR [--noise N] [--step N N] [--encoder NAME] [--direction NAME] [--json FILE] [--plot FILE]

With --noise every other benign picture has each of its numbers moved by so much, up or down (needs Pillow): then noise, which fools nobody, is no way to
tell what is adversarial. BENIGN is any folder of PNG, JPEG or WebP; ADVERSARIAL one that `mustela bench detect --keep` wrote, of attacked pictures of that encoder. No picture
is both an example and held out. While examples are posted, another client asks
about one picture at a time; its waits are compared with those after the last example. At the end the service is killed and started again.
"""

import argparse
import base64
import http.client
import io
import itertools
import json
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

HELD_OUT = 32  # of each class: as many as one evaluation takes
SIDE = 224
AT_REST = 60  # questions after the last example


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    for name in ("models", "benign", "adversarial"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--direction", default="logistic")
    parser.add_argument("--noise", type=int, default=0, help="in 255ths")
    parser.add_argument("--posts", type=int, default=24)
    parser.add_argument("--step", type=int, nargs=2, default=(3, 1), help="benign and adversarial examples of a post")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    return parser.parse_args()


def pictures(folder, wanted):
    """One picture of each name, so that nothing that was made of one source is both an example and held out."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    files = list({path.stem: path for path in files}.values())
    random.Random(0).shuffle(files)
    if len(files) < wanted:
        raise SystemExit(f"{folder} has {len(files)} pictures, {wanted} are needed")
    return files


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Service:
    def __init__(self, given, folder):
        self.port = free_port()
        command = [given.binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--metrics-listen", "127.0.0.1:0", "--data-dir", folder]
        command += ["--set", f"models.dir={given.models.resolve()}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def ask(self, method, path, body=None, accept=(200, 201, 202)):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in accept:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:400]!r}")
        return answer.status, json.loads(text)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def noisy(path, by):
    """A square of the side that the encoder reads, as the service would make it, with noise; a smaller picture's noise would be smoothed."""
    from PIL import Image

    picture = Image.open(path).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    draw = random.Random(path.stem)
    moved = (value + (by if sign & 1 else -by) for value, sign in zip(picture.tobytes(), draw.randbytes(3 * SIDE * SIDE)))
    file = io.BytesIO()
    Image.frombytes("RGB", picture.size, bytes(min(255, max(0, value)) for value in moved)).save(file, "PNG")
    return file.getvalue()


def row(path, label, noise=0):
    # Attacked pictures are named by the picture that they were made of.
    file = noisy(path, noise) if noise else path.read_bytes()
    return {"image": base64.b64encode(file).decode(), "label": label, "source": f"{label} {path.stem}"}


class Reader(threading.Thread):
    """Asks about one picture after the other, and keeps how long each answer took."""

    def __init__(self, service, picture):
        super().__init__(daemon=True)
        self.service, self.body, self.waits = service, {"rows": [{"image": row(picture, "")["image"]}]}, []
        self.ended, self.failure = False, None

    def run(self):
        try:
            while not self.ended:
                self.waits.append(self.once())
        except BaseException as failure:  # told by whoever joins
            self.failure = failure

    def once(self):
        began = time.perf_counter()
        # Before both classes were seen there is no threshold: 409.
        self.service.ask("POST", "/v1/detectors/live/detect", self.body, accept=(200, 409))
        return time.perf_counter() - began


def told(waits):
    cut = statistics.quantiles(waits, n=100)
    return {"answers": len(waits), "p50_ms": round(1e3 * cut[49], 1), "p99_ms": round(1e3 * cut[98], 1)}


def plot(points, path):
    width, height, left, top = 640, 300, 60, 20
    x = lambda examples: left + (width - left - 20) * examples / max(points[-1]["adversarial_examples"], 1)
    y = lambda auroc: top + (height - top - 50) * (1 - auroc)
    line = " ".join(f"{x(p['adversarial_examples']):.1f},{y(p['auroc']):.1f}" for p in points)
    band = " ".join(f"{x(p['adversarial_examples']):.1f},{y(p['low']):.1f}" for p in points)
    band += " " + " ".join(f"{x(p['adversarial_examples']):.1f},{y(p['high']):.1f}" for p in reversed(points))
    ticks = "".join(
        f'<line x1="{left}" x2="{width - 20}" y1="{y(v)}" y2="{y(v)}" stroke="#ddd"/><text x="{left - 8}" y="{y(v) + 4}" text-anchor="end">{v}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    ends = "".join(
        f'<text x="{x(p["adversarial_examples"])}" y="{height - 30}" text-anchor="middle">{p["adversarial_examples"]}</text>' for p in points[::5]
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{ticks}{ends}<polygon points="{band}" fill="#4878cf" opacity="0.2"/>'
        f'<polyline points="{line}" fill="none" stroke="#4878cf" stroke-width="2"/>'
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">adversarial examples posted; AUROC on {HELD_OUT} + {HELD_OUT} held-out pictures, 95 %</text></svg>\n'
    )


def main():
    given = arguments()
    benign = pictures(given.benign, HELD_OUT + given.posts * given.step[0])
    adversarial = pictures(given.adversarial, HELD_OUT + 8)
    posts = min(given.posts, (len(adversarial) - HELD_OUT) // given.step[1])
    turns = itertools.cycle((0, given.noise))
    harmless = (row(path, "benign", noise) for path, noise in zip(benign, turns))
    attacked = (row(path, "adversarial") for path in adversarial)
    held_out = {"rows": [*itertools.islice(harmless, HELD_OUT), *itertools.islice(attacked, HELD_OUT)]}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(given, folder)
        service.ask("PUT", "/v1/detectors/live", {"encoder": given.encoder, "direction": given.direction, "held_out_every": 4})
        points, busy = [], []
        for post in range(posts):
            rows = [*itertools.islice(harmless, given.step[0]), *itertools.islice(attacked, given.step[1])]
            random.Random(post).shuffle(rows)
            reader = Reader(service, benign[0])
            reader.start()
            examined = [{key: said[key] for key in ("image", "label")} for said in rows]
            _, applied = service.ask("POST", "/v1/detectors/live/examples?wait=applied&timeout_seconds=25", {"rows": examined})
            reader.ended = True
            reader.join()
            if reader.failure or not applied["applied"]:
                raise SystemExit(f"a reader failed ({reader.failure}), or the examples were not learned in time ({applied})")
            busy += reader.waits
            _, measured = service.ask("POST", "/v1/detectors/live/evaluate", held_out)
            figures = measured["figures"]
            points.append({
                "adversarial_examples": (post + 1) * given.step[1],
                "auroc": figures["auroc"],
                **(figures["auroc_interval"] or {"low": figures["auroc"], "high": figures["auroc"]}),
                "tpr_at_5_percent_fpr": figures["at_fpr"][1]["tpr"],
                "model_version": measured["model_version"],
            })
            print(f"{points[-1]['adversarial_examples']:4} adversarial examples: AUROC {figures['auroc']:.3f}", flush=True)
        reader = Reader(service, benign[0])
        rest = [reader.once() for _ in range(AT_REST)]
        before = service.ask("GET", "/v1/detectors/live")[1]
        service.kill()
        service = Service(given, folder)
        while (after := service.ask("GET", "/v1/detectors/live")[1])["version"] != before["version"]:
            time.sleep(0.1)
        service.kill()
    waits = {"at_rest": told(rest), "while_it_learns": told(busy)}
    same = [before[key] == after[key] for key in ("direction", "threshold")]
    result = {"encoder": given.encoder, "direction": given.direction, "noise": given.noise, "points": points, "reads": waits, "same_bits_after_a_kill": all(same)}
    print(json.dumps({key: result[key] for key in ("reads", "same_bits_after_a_kill")}, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.plot:
        plot(points, given.plot)
    if not all(same):
        raise SystemExit("the direction after the restart is another one")


main()
