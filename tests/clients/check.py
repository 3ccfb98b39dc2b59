"""Stock clients against a running service: python3 check.py http://127.0.0.1:PORT

Each check uses a client as its own documentation does, and holds what it gives to what the service's own doors say.
"""

import base64
import io
import json
import os
import pathlib
import random
import struct
import sys
import urllib.request
import zlib

import numpy
import openai
import polars
import pyarrow
import tritonclient.http as triton

ENCODER = "squeezenet1.1"
ARROW = "application/vnd.apache.arrow.stream"
SCHEMA = {
    "fields": [
        {"name": "carrier", "type": "categorical"},
        {"name": "miles", "type": "numeric"},
        {"name": "delay", "type": "numeric", "optional": True},
    ],
    "target": {"name": "late", "type": "classes", "classes": ["no", "yes"]},
    "row_id": "id",
}


def call(method, url, body=None, kind="application/json", accept=None):
    headers = {"content-type": kind} | ({"accept": accept} if accept else {})
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content = answer.read()
        return content if not content or answer.headers["content-type"] == ARROW else json.loads(content)


def table(seed, rows=500):
    """A table of flights whose delay and carrier tell whether they are late; one delay in five is missing."""
    draw = random.Random(seed)
    delays = [draw.gauss(0, 1) if draw.random() > 0.2 else None for _ in range(rows)]
    carriers = [draw.choice(["AA", "BB", "CC"]) for _ in range(rows)]
    late = ["yes" if (delay or 0) + (carrier == "AA") > 0.5 else "no" for delay, carrier in zip(delays, carriers)]
    return {
        "id": [f"{seed}-{row}" for row in range(rows)],
        "carrier": carriers,
        "miles": [draw.randrange(100, 3000) for _ in range(rows)],
        "delay": delays,
        "late": late,
    }


def with_pyarrow(base):
    """Posts a pyarrow table and a stream of batches, and reads predictions back as a table."""
    rows = pyarrow.table(table(1)).set_column(1, "carrier", pyarrow.array(table(1)["carrier"]).dictionary_encode())
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=100)
    said = call("POST", f"{base}/v1/streams/flights/batches?wait=applied", sink.getvalue(), ARROW)
    assert said["rows"] == 500 and said["applied"], said

    query = rows.drop_columns(["late", "id"]).slice(0, 20)
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, query.schema) as writer:
        writer.write_table(query)
    answer = call("POST", f"{base}/v1/models/m/predict", sink.getvalue(), ARROW, accept=ARROW)
    with pyarrow.ipc.open_stream(answer) as reader:
        version = reader.schema.metadata[b"model_version"].decode()
        predictions = reader.read_all()
    told = call("POST", f"{base}/v1/models/m/predict", {"rows": query.to_pylist()})
    assert version == told["model_version"] == said["model_version"], (version, told, said)
    for mine, theirs in zip(predictions.to_pylist(), told["predictions"], strict=True):
        assert (mine["class"], mine["label"]) == (theirs["class"], theirs["label"]), (mine, theirs)
        assert numpy.array_equal(numpy.float32(mine["probabilities"]), numpy.float32(theirs["probabilities"])), (mine, theirs)


def with_polars(base):
    """Posts a polars frame with categoricals and nulls, and reads predictions back as a frame."""
    frame = polars.DataFrame(table(2)).with_columns(polars.col("carrier").cast(polars.Categorical))
    sink = io.BytesIO()
    frame.write_ipc_stream(sink)
    said = call("POST", f"{base}/v1/streams/flights/batches?wait=applied", sink.getvalue(), ARROW)
    assert said["rows"] == 500 and said["applied"], said

    sink = io.BytesIO()
    frame.drop("late", "id").head(20).write_ipc_stream(sink)
    answer = call("POST", f"{base}/v1/models/m/predict", sink.getvalue(), ARROW, accept=ARROW)
    predictions = polars.read_ipc_stream(io.BytesIO(answer))
    assert predictions.columns == ["class", "label", "probabilities"] and predictions.height == 20, predictions
    assert set(predictions["label"]) <= {"no", "yes"}, predictions


def with_tritonclient(base):
    """Health, metadata and inference, as bytes (the client's default) and as JSON; and a refusal that can be read."""
    client = triton.InferenceServerClient(url=base.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m")
    assert client.get_server_metadata()["name"] == "mustela"
    metadata = client.get_model_metadata("m")
    assert [each["datatype"] for each in metadata["inputs"]] == ["BYTES", "FP32", "FP32"], metadata
    (version,) = metadata["versions"]
    assert client.is_model_ready("m", version) and client.get_model_metadata("m", version) == metadata
    assert client.get_model_repository_index()[0]["state"] == "READY"

    rows = {name: column[:20] for name, column in table(3).items()}
    columns = {
        "carrier": numpy.array(rows["carrier"], dtype=numpy.object_),
        "miles": numpy.array(rows["miles"], dtype=numpy.int64),
        "delay": numpy.array(rows["delay"], dtype=numpy.float32),
    }
    features = [{name: rows[name][row] for name in columns} for row in range(20)]
    told = call("POST", f"{base}/v1/models/m/predict", {"rows": features})
    expected = numpy.float32([prediction["probabilities"] for prediction in told["predictions"]])
    for binary in (True, False):
        inputs = []
        for name, column in columns.items():
            kind = {"carrier": "BYTES", "miles": "INT64", "delay": "FP32"}[name]
            # Its JSON cannot say NaN.
            column = column if binary else numpy.nan_to_num(column) if name == "delay" else column
            tensor = triton.InferInput(name, list(column.shape), kind)
            tensor.set_data_from_numpy(column, binary_data=binary)
            inputs.append(tensor)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
        outputs = wanted if binary else None
        answer = client.infer("m", inputs, outputs=outputs, request_id="17", request_compression_algorithm="gzip")
        response = answer.get_response()
        assert (response["id"], response["model_version"]) == ("17", told["model_version"]), response
        assert answer.as_numpy("probabilities").shape == (20, 2)
        if binary:
            assert numpy.array_equal(answer.as_numpy("probabilities"), expected)
            labels = [label.decode() for label in answer.as_numpy("label")]
            assert labels == [prediction["label"] for prediction in told["predictions"]]
    # Asynchronous, by the name of the version that is served.
    assert client.async_infer("m", inputs, model_version=version).get_result().as_numpy("class").shape == (20,)
    try:
        client.infer("m", inputs[:1])
    except triton.InferenceServerException as refusal:
        assert "miles" in refusal.message(), refusal.message()
    else:
        raise AssertionError("a query without a column was answered")


def with_openai(base):
    """Lists the models, and looks at one."""
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none")
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("m", "model", "mustela"), model
    assert client.models.retrieve("m").created == model.created > 1.7e9


def png(pixels):
    """An image file of `[height, width, 3]` bytes."""
    height, width, _ = pixels.shape
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture(seed, adversarial):
    """Smooth colours with noise; an adversarial one has a chequered pattern over them. As a data URL."""
    draw = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:224, 0:224]
    waves = [numpy.sin((x * draw.uniform(0.5, 2) + y * draw.uniform(0.5, 2)) / 50 + draw.uniform(0, 6)) for _ in range(3)]
    pixels = 128 + 60 * numpy.stack(waves, axis=-1) + draw.normal(0, 4, (224, 224, 3))
    pixels += 20 * (((x + y) % 2 * 2 - 1) * adversarial)[:, :, None]
    return "data:image/png;base64," + base64.b64encode(png(pixels.clip(0, 255).astype(numpy.uint8))).decode()


def with_moderations(base):
    """Has a detector look at pictures through the door of OpenAI's moderations; and a refusal that can be read."""
    call("PUT", f"{base}/v1/detectors/photos", {"encoder": ENCODER, "direction": "mean_difference"})
    rows = [{"image": picture(seed, seed % 3 == 2), "label": ["benign", "adversarial"][seed % 3 == 2]} for seed in range(36)]
    said = call("POST", f"{base}/v1/detectors/photos/examples?wait=applied", {"rows": rows})
    assert said["applied"], said

    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none")
    part = lambda url: {"type": "image_url", "image_url": {"url": url}}
    for adversarial in (False, True):
        parts = [{"type": "text", "text": "What is this?"}, part(picture(100, False)), part(picture(101, adversarial))]
        answer = client.moderations.create(model="photos", input=parts)
        (result,) = answer.results
        assert (answer.model, result.flagged) == ("photos", adversarial), answer
        assert result.categories.adversarial_image is adversarial, answer
    try:
        client.moderations.create(model="photos", input=[part("https://example.org/a.png")])
    except openai.UnprocessableEntityError as refusal:
        assert (refusal.code, refusal.type) == ("invalid_input", "invalid_request_error"), refusal
    else:
        raise AssertionError("a picture that would have to be fetched was looked at")
    try:
        client.moderations.create(model="omni-moderation-latest", input=[part(picture(100, False))])
    except openai.NotFoundError as refusal:
        assert refusal.code == "not_found", refusal
    else:
        raise AssertionError("a detector that is not there has answered")
    call("DELETE", f"{base}/v1/detectors/photos")


def main():
    base = sys.argv[1].rstrip("/")
    call("PUT", f"{base}/v1/streams/flights", SCHEMA)
    call("PUT", f"{base}/v1/models/m", {"kind": "network", "stream": "flights"})
    checks = [with_pyarrow, with_polars, with_tritonclient, with_openai]
    if pathlib.Path(os.environ.get("MODELS_DIR", ""), f"{ENCODER}.safetensors").is_file():
        checks.append(with_moderations)
    else:
        print(f"clients: SKIPPED with_moderations: MODELS_DIR has no {ENCODER}.safetensors", file=sys.stderr)
    for check in checks:
        check(base)
        print(f"clients: {check.__name__} passed")
    view = call("GET", f"{base}/v1/models/m")
    assert view["rows"]["learned"] == 1000, view


main()
