#!/usr/bin/env bash
# Holds the manifests to the schemas of the oldest and the newest Kubernetes that they are meant for, to each other and to the
# configuration's default, and lints the Dockerfile. Nothing is run. Needs python3 and PyPI; takes a few seconds once the tools are there, and
# ends with 69 where they cannot be installed:
#   deploy/kubernetes/check.sh
set -euo pipefail
cd "$(dirname "$0")"
venv=../../target/deploy
if [[ ! -x $venv/bin/kubernetes-validate ]]; then
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt; }; then
        echo "the tools of requirements.txt cannot be installed" >&2
        exit 69
    fi
fi
manifests=()
for file in *.yaml; do
    [[ $file == kustomization.yaml ]] || manifests+=("$file")
done
for version in 1.30.0 1.37.0; do
    "$venv/bin/kubernetes-validate" --quiet --strict --kubernetes-version "$version" "${manifests[@]}"
done
"$venv/bin/python" check.py "${manifests[@]}"
"$venv/bin/hadolint" ../../Dockerfile
echo "deploy: ${#manifests[@]} manifests and the Dockerfile passed"
