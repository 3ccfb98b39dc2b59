#!/usr/bin/env bash
# Holds the live page to a running service in a real browser, in less than a minute:
#   tests/page/check.sh MUSTELA_BINARY [FOLDER_FOR_SCREENSHOTS [SCRIPT]]
# A real service with a short stream, headless Chromium, and check.mjs; or picture.mjs, which makes the picture of the README:
#   tests/page/check.sh target/release/mustela docs picture.mjs
# Needs chromium (Debian: apt-get install chromium), node, and npm, which installs playwright-core, at a version that is fixed here, into
# a temporary folder; ends with 69 where one of these is missing. Takes free ports, and stops all that it started.
set -euo pipefail

playwright=playwright-core@1.56.1

if [[ $# -lt 1 || $# -gt 3 || ! -x $1 ]]; then
    echo "usage: $0 MUSTELA_BINARY [FOLDER_FOR_SCREENSHOTS [SCRIPT]]" >&2
    exit 64
fi
for tool in chromium node npm; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing (Debian: apt-get install -y chromium nodejs npm)" >&2
        exit 69
    fi
done
binary=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
temporary=$(mktemp -d)
shots=$(realpath -m "${2:-$temporary/screenshots}")
mkdir -p "$shots"
started=()

finish() {
    status=$?
    trap - EXIT
    if ((${#started[@]})); then
        kill "${started[@]}" 2>/dev/null || true
        wait "${started[@]}" 2>/dev/null || true
    fi
    if ((status)); then
        for log in "$temporary"/*.log; do
            [[ -s $log ]] && printf -- '-- %s\n' "$(basename "$log")" >&2 && tail -n 20 "$log" >&2
        done
    fi
    rm -rf "$temporary"
    ((status)) || echo "live page: all passed in ${SECONDS} s"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! npm install --prefix "$temporary/node" --no-audit --no-fund --ignore-scripts --loglevel=error "$playwright" \
    >"$temporary/npm.log" 2>&1; then
    echo "npm cannot install $playwright" >&2
    exit 69
fi

MUSTELA_LOG=warn "$binary" serve --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --data-dir "$temporary/data" \
    >"$temporary/addresses" 2>"$temporary/service.log" &
started+=($!)
for _ in {1..100}; do
    [[ $(grep -cs http:// "$temporary/addresses") -eq 2 ]] && break
    kill -0 "${started[0]}" 2>/dev/null || break
    sleep 0.1
done
doors=$(sed -n 's/.*doors at //p' "$temporary/addresses")
metrics=$(sed -n 's/.*metrics at //p' "$temporary/addresses")
if [[ -z $doors || -z $metrics ]]; then
    echo "the service did not start" >&2
    exit 1
fi

DOORS=$doors METRICS=$metrics SHOTS=$shots SERVICE=${started[0]} BINARY=$binary PLAYWRIGHT="$temporary/node/node_modules/playwright-core/index.mjs" \
    node "$here/${3:-check.mjs}"
