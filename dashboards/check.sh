#!/usr/bin/env bash
# Holds dashboards and rules to a running service, in less than a minute:
#   dashboards/check.sh MUSTELA_BINARY
# a real service with a short stream, a real Prometheus that scrapes it, and every expression evaluated by check.py; promtool on
# configuration, rules and their tests, and on the service's own /metrics. Needs prometheus and promtool (Debian: apt-get install
# prometheus) and python3. Takes free ports and a temporary folder, and stops all that it started.
set -euo pipefail

if [[ $# -ne 1 || ! -x $1 ]]; then
    echo "usage: $0 MUSTELA_BINARY" >&2
    exit 64
fi
for tool in prometheus promtool python3; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing (Debian: apt-get install -y prometheus python3)" >&2
        exit 69
    fi
done
binary=$(realpath "$1")
cd "$(dirname "$0")"
temporary=$(mktemp -d)
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
    ((status)) || echo "dashboards: all passed in ${SECONDS} s"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Prints what is at a URL; waits for it up to so many seconds.
fetch() {
    python3 - "$1" "$2" <<'PYTHON'
import sys, time, urllib.request
until = time.monotonic() + float(sys.argv[2])
while True:
    try:
        sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
        break
    except OSError as error:
        if time.monotonic() > until:
            sys.exit(f"{sys.argv[1]}: {error}")
        time.sleep(0.1)
PYTHON
}

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

python3 traffic.py "$doors" 50 2>"$temporary/traffic.log" &
traffic=$!
started+=("$traffic")

# The configuration as it is, but for the target and the intervals.
target=${metrics#http://}
sed -e "s|mustela:9464|${target%/metrics}|" -e 's/_interval: .*/_interval: 1s/' -e 's/scrape_timeout: .*//' prometheus/prometheus.yml \
    >"$temporary/prometheus.yml"
cp -r prometheus/rules "$temporary/rules"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
prometheus --config.file="$temporary/prometheus.yml" --storage.tsdb.path="$temporary/tsdb" --log.level=warn \
    --web.listen-address="127.0.0.1:$port" >"$temporary/prometheus.log" 2>&1 &
started+=($!)
fetch "http://127.0.0.1:$port/-/ready" 15 >/dev/null

# While the stream passes, what needs no service.
until=$((SECONDS + 18))
promtool check config --lint=all --lint-fatal prometheus/prometheus.yml
promtool check rules --lint=all --lint-fatal prometheus/rules/*.yml
promtool test rules prometheus/tests/*.yml
while ((SECONDS < until)); do
    sleep 0.5
done
if ! kill -0 "$traffic" 2>/dev/null; then
    echo "the stream ended early" >&2
    exit 1
fi

python3 check.py --prometheus "http://127.0.0.1:$port" --metrics "$metrics"

fetch "$metrics" 5 >"$temporary/metrics"
complaints=$(promtool check metrics <"$temporary/metrics" 2>&1) || true
if [[ -n $complaints ]]; then
    printf 'promtool check metrics:\n%s\n' "$complaints" >&2
    exit 1
fi
