#!/usr/bin/env bash
# Holds the doors to stock clients of other projects, in less than a minute once they are installed:
#   tests/clients/check.sh MUSTELA_BINARY
# a service on free ports and a temporary folder, and check.py against it: tritonclient, pyarrow, polars and openai from PyPI, unchanged;
# before, what it says of its doors is held to the OpenAPI specification.
# MODELS_DIR is the folder of the encoders' weights; without it no detector is asked.
# Needs python3; ends with 69 where the clients cannot be installed.
set -euo pipefail

if [[ $# -ne 1 || ! -x $1 ]]; then
    echo "usage: $0 MUSTELA_BINARY" >&2
    exit 64
fi
binary=$(realpath "$1")
MODELS_DIR=$(realpath -m "${MODELS_DIR:-models}")
export MODELS_DIR
cd "$(dirname "$0")"
venv=../../target/clients
temporary=$(mktemp -d)
service=

finish() {
    status=$?
    trap - EXIT
    if [[ -n $service ]]; then
        kill "$service" 2>/dev/null || true
        wait "$service" 2>/dev/null || true
    fi
    ((status)) && [[ -s $temporary/service.log ]] && tail -n 20 "$temporary/service.log" >&2
    rm -rf "$temporary"
    ((status)) || echo "clients: all passed in ${SECONDS} s"
    exit "$status"
}
trap finish EXIT

if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt; }; then
    echo "the clients of requirements.txt cannot be installed" >&2
    exit 69
fi

MUSTELA_LOG=warn MUSTELA_MODELS__DIR="$MODELS_DIR" "$binary" serve --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --data-dir "$temporary/data" \
    >"$temporary/addresses" 2>"$temporary/service.log" &
service=$!
for _ in {1..100}; do
    doors=$(sed -n 's/.*doors at //p' "$temporary/addresses")
    [[ -n $doors ]] && break
    sleep 0.1
done
if [[ -z $doors ]]; then
    echo "the service did not start" >&2
    exit 1
fi
curl -sf "$doors/openapi.json" >"$temporary/openapi.json"
"$venv/bin/openapi-spec-validator" "$temporary/openapi.json"
"$venv/bin/python" check.py "$doors"
