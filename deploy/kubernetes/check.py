"""Holds the manifests to what no schema says: that their names meet, and that what they promise of the process is so."""

import sys
import tomllib
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def check(condition, complaint):
    if not condition:
        sys.exit(f"deploy/kubernetes: {complaint}")


def main(files):
    kustomization = yaml.safe_load((HERE / "kustomization.yaml").read_text())
    check(sorted(kustomization["resources"]) == sorted(files), "kustomization.yaml does not list each manifest once")
    documents = [document for file in files for document in yaml.safe_load_all((HERE / file).read_text())]
    of_kind = lambda kind: {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}
    services, stateful = of_kind("Service"), of_kind("StatefulSet")["mustela"]["spec"]
    check(kustomization["namespace"] in of_kind("Namespace"), "the namespace is not made")

    pod = stateful["template"]["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    check(services[stateful["serviceName"]]["spec"].get("clusterIP") == "None", "the StatefulSet's service has an address of its own")
    selectors = [service["spec"]["selector"] for service in services.values()]
    selectors += [of_kind("PodDisruptionBudget")["mustela"]["spec"]["selector"]["matchLabels"], stateful["selector"]["matchLabels"]]
    selectors += [of_kind("NetworkPolicy")["mustela"]["spec"]["podSelector"]["matchLabels"]]
    check(all(selector.items() <= labels.items() for selector in selectors), "a selector finds no pod")
    wanted = [port["targetPort"] for service in services.values() for port in service["spec"]["ports"]]
    probes = [container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    wanted += [probe["port"] for probe in probes]
    wanted += [port["port"] for rule in of_kind("NetworkPolicy")["mustela"]["spec"]["ingress"] for port in rule["ports"]]
    check(set(wanted) == set(ports), f"ports {sorted(set(wanted))} are asked for, {sorted(ports)} are there")
    check({probe["path"] for probe in probes} == {"/v2/health/live", "/v2/health/ready"}, "a probe asks at another path")

    # What the image says, and what the binary has by default.
    dockerfile = (ROOT / "Dockerfile").read_text()
    for port in ports.values():
        check(f"=0.0.0.0:{port}" in dockerfile, f"the image does not listen at {port}")
    check(f"USER {pod['securityContext']['runAsUser']}:" in dockerfile, "the pod's user is not the image's")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    check(set(mounts) == claims and f"MUSTELA_DATA_DIR={mounts['data']}" in dockerfile, "the volume is not where the data goes")
    default = tomllib.loads((ROOT / "config/mustela.toml").read_text())
    shutdown = default["http"]["shutdown_seconds"] + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    check(pod["terminationGracePeriodSeconds"] > shutdown, "the grace period is shorter than preStop and the shutdown")
    for variable in container["env"]:
        key = variable["name"].removeprefix("MUSTELA_").lower().split("__")
        known = default
        for word in key:
            check(word in known, f"{variable['name']} sets no key of the configuration")
            known = known[word]


if __name__ == "__main__":
    main(sys.argv[1:])
