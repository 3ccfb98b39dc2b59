#!/usr/bin/env python3
"""Holds dashboards and rules to what the service really exports.

    check.py                                              the files alone
    check.py --prometheus URL --metrics URL               and every expression against a Prometheus that scrapes a service

Of the files: panels have a unit, a description, a data source by variable and a place of their own; no colour is fixed by number,
so both themes work; every alert says what it saw and what to do, and has tests that fire and that do not. Of a running Prometheus:
every expression of panels, variables, annotations and rules is evaluated, names only metrics that the service exports or rules
record, uses in its legend only labels that are there, and is not empty, unless `MAY_BE_EMPTY` says why.

Python's standard library only.
"""

import argparse
import json
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent

# Metrics that the service exports only once something has happened that a short healthy run need not see: (name, why).
MAY_BE_ABSENT = {
    "mustela_model_drift_sequence": "there from the first drift on",
    "mustela_memory_budget_bytes": "there while a model has a budget of its own",
}

# Expressions that may find nothing, by the file and the title or name that they stand under: why.
MAY_BE_EMPTY = {
    ("overview.json", "Firing alerts"): "nothing is wrong",
    ("recording.yml", "instance:mustela_http_requests:errors_ratio5m"): "no request ended with 5xx",
    ("trainer.json", "annotation Drift"): "the stream has not drifted",
    ("trainer.json", "Checkpoint time"): "a mean over the checkpoints of 5 minutes; a short run may have none after the first scrape",
}
# An alert that finds nothing is a service that is well.
KINDS_THAT_MAY_BE_EMPTY = {"alert"}

# What Prometheus makes itself.
OF_PROMETHEUS = {"up", "ALERTS"}

UNITS = {"short", "s", "bytes", "percentunit", "reqps", "rowsps", "recps", "cps"}

# What Grafana would put in. The windows suit a Prometheus that scrapes each second.
SUBSTITUTES = {"__rate_interval": "10s", "__interval": "5s", "__range": "60s"}

# Words of PromQL that look like metrics.
WORDS = {
    "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "atan2", "inf", "nan",
    "start", "end",
}


class Expression:
    def __init__(self, file, title, kind, text, legend=""):
        self.file, self.title, self.kind, self.text, self.legend = file, title, kind, text.strip(), legend

    def __str__(self):
        return f"{self.file}: {self.kind} {self.title!r}: {' '.join(self.text.split())}"


faults = []


def fault(message):
    faults.append(message)
    print(f"fault: {message}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------------- files


def panels_of(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def values_of(tree, key):
    """Every value that stands under `key`, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values_of(value, key)


def dashboard_expressions(path):
    name = path.name
    dashboard = json.loads(path.read_text())
    lint_dashboard(name, dashboard)
    for panel in panels_of(dashboard):
        for target in panel.get("targets", []):
            legend = target["legendFormat"] if target["legendFormat"] != "__auto" else ""
            yield Expression(name, panel["title"], "panel", target["expr"], legend)
    for note in dashboard["annotations"]["list"]:
        if "expr" in note:
            yield Expression(name, f"annotation {note['name']}", "panel", note["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inside = re.fullmatch(r"label_values\((.*), *(\w+)\)", variable["definition"])
            if not inside or variable["query"]["query"] != variable["definition"]:
                fault(f"{name}: variable {variable['name']} is no label_values(selector, label)")
                continue
            yield Expression(name, f"variable {variable['name']}", "panel", inside[1], "{{" + inside[2] + "}}")


def lint_dashboard(name, dashboard):
    uid = dashboard["uid"]
    if not uid.startswith("mustela-") or "mustela" not in dashboard["tags"]:
        fault(f"{name}: uid and tag are what the others link to")
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    if variables[:2] != ["datasource", "instance"]:
        fault(f"{name}: the variables begin with {variables[:2]}")
    text = json.dumps(dashboard)
    for used in set(re.findall(r"\$\{?([a-z]\w*)", text)):
        if used not in variables:
            fault(f"{name}: the variable {used} is used and is not there")
    for variable in variables:
        if not re.search(r"\$\{?" + variable + r"\b", text):
            fault(f"{name}: the variable {variable} is there and is not used")
    if re.search(r'"#[0-9a-fA-F]{3,8}"|"rgba?\(', text):
        fault(f"{name}: a colour by number; names suit both themes")
    ids, taken = set(), {}
    for panel in panels_of(dashboard):
        where = f"{name}: panel {panel['title']!r}"
        if panel["id"] in ids:
            fault(f"{where}: the id {panel['id']} is taken")
        ids.add(panel["id"])
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            fault(f"{where} is wider than the page")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    fault(f"{where} lies over {taken[x, y]!r}")
                    break
                taken[x, y] = panel["title"]
        if panel["type"] == "row":
            continue
        if len(panel.get("description", "")) < 20:
            fault(f"{where} has no description")
        for source in [panel.get("datasource")] + [target.get("datasource") for target in panel["targets"]]:
            if source != {"type": "prometheus", "uid": "${datasource}"}:
                fault(f"{where}: the data source {source} is not the variable")
        unit = panel["fieldConfig"]["defaults"].get("unit")
        if unit not in UNITS:
            fault(f"{where}: the unit {unit!r} is none of {sorted(UNITS)}")
        for target in panel["targets"]:
            if "=\"$" in target["expr"]:
                fault(f"{where}: a variable is matched by = and not by =~")


def rule_expressions(path):
    """Reads the rules in the one style that they are written in: `expr:` on a line, or `expr: |` with deeper lines below."""
    lines = path.read_text().splitlines()
    name = kind = None
    for at, line in enumerate(lines):
        if match := re.match(r"\s*- (alert|record): (\S+)$", line):
            kind, name = match.groups()
        if match := re.match(r"(\s*)expr: (.+)$", line):
            text = match[2]
            if text == "|":
                deeper = len(match[1]) + 1
                block = []
                for below in lines[at + 1 :]:
                    if below.strip() and len(below) - len(below.lstrip()) < deeper:
                        break
                    block.append(below)
                text = "\n".join(block)
            yield Expression(path.name, name, kind, text)


def lint_alerts(paths, tests):
    blocks = [block for path in paths for block in re.split(r"(?m)^\s*- alert: ", path.read_text())[1:]]
    for block in blocks:
        name = block.split()[0]
        for wanted in ["severity: (critical|warning) }", "summary: ", "action: "]:
            if not re.search(wanted, block):
                fault(f"alert {name} has no {wanted}")
        for wanted in ["fires", "is quiet"]:
            if f"name: {name} {wanted}\n" not in tests:
                fault(f"alert {name} has no test that says `{name} {wanted}`")
    for tested in set(re.findall(r"name: (\w+) (?:fires|is quiet)\n", tests)):
        if not any(block.split()[0] == tested for block in blocks):
            fault(f"a test of the alert {tested}, which is not there")


def names_in(text):
    """The metrics that an expression names."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', "", text)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\boffset\s+-?\w+", " ", bare)
    found = re.finditer(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(\s*\()?", bare)
    return {match[1] for match in found if not match[2] and match[1].lower() not in WORDS}


# ------------------------------------------------------------------------------------------------------------- a running one


def get(url, form=None):
    data = urllib.parse.urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def exported(metrics_url):
    """The families that the service exports, and the series that each of them makes."""
    families, series = {}, {}
    for line in get(metrics_url).splitlines():
        if match := re.match(r"# TYPE (\S+) (\S+)", line):
            families[match[1]] = match[2]
    for family, kind in families.items():
        ends = ["_bucket", "_sum", "_count"] if kind == "histogram" else [""]
        series.update({family + end: family for end in ends})
    return families, series


def substituted(expression):
    text = expression.text
    for name, value in SUBSTITUTES.items():
        text = re.sub(r"\$\{?" + name + r"\b\}?", value, text)
    text = re.sub(r"\$\{?[a-z]\w*\}?", ".*", text)
    if "$" in text:
        fault(f"{expression}: something is left to put in: {text}")
    return text


def evaluate(expression, prometheus):
    """The number of series that it finds, none where it fails."""
    answer = json.loads(get(f"{prometheus}/api/v1/query", {"query": substituted(expression)}))
    if answer["status"] != "success":
        fault(f"{expression}: {answer['error']}")
        return None
    result = answer["data"]["result"]
    if answer["data"]["resultType"] != "vector":
        fault(f"{expression}: a {answer['data']['resultType']}")
        return None
    for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", expression.legend):
        if any(label not in one["metric"] for one in result):
            fault(f"{expression}: the legend has {label}, which series lack")
    if result and all(one["value"][1] == "NaN" for one in result):
        fault(f"{expression}: not a number")
    return len(result)


def check_running(expressions, prometheus, metrics_url):
    families, series = exported(metrics_url)
    recorded = {expression.title for expression in expressions if expression.kind == "record"}
    if not series:
        fault(f"{metrics_url} has no metrics")
    used = set()
    for expression in expressions:
        for name in sorted(names_in(expression.text)):
            used.add(series.get(name, name))
            if name not in series and name not in recorded | OF_PROMETHEUS | set(MAY_BE_ABSENT):
                fault(f"{expression}: the service has no metric {name}")
        found = evaluate(expression, prometheus)
        if found and expression.kind == "alert":
            print(f"note: the condition of {expression.title} holds now")
        excused = expression.kind in KINDS_THAT_MAY_BE_EMPTY or (expression.file, expression.title) in MAY_BE_EMPTY
        if found == 0 and not excused:
            fault(f"{expression}: it finds nothing")
    for name in sorted(set(families) - used):
        print(f"note: {name} is on no dashboard and in no rule")

    rules = json.loads(get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
    loaded = {rule["name"]: rule for group in rules for rule in group["rules"]}
    for expression in expressions:
        if expression.kind in {"alert", "record"} and loaded.get(expression.title, {}).get("health") != "ok":
            fault(f"{expression}: Prometheus says {loaded.get(expression.title, {}).get('lastError', 'that it has no such rule')!r}")
    if len(loaded) != sum(expression.kind in {"alert", "record"} for expression in expressions):
        fault("Prometheus has other rules than the files")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--prometheus", help="where a Prometheus is that has these rules and scrapes the service")
    arguments.add_argument("--metrics", help="the service's /metrics")
    arguments = arguments.parse_args()

    expressions = []
    dashboards = sorted((HERE / "grafana").glob("*.json"))
    for path in dashboards:
        expressions += dashboard_expressions(path)
    uids = [json.loads(path.read_text())["uid"] for path in dashboards]
    if len(uids) != len(set(uids)) or not uids:
        fault(f"the uids of the dashboards: {uids}")
    tests = "".join(path.read_text() for path in (HERE / "prometheus/tests").glob("*.yml"))
    rules = sorted((HERE / "prometheus/rules").glob("*.yml"))
    for path in rules:
        expressions += rule_expressions(path)
    lint_alerts(rules, tests)
    titles = {(expression.file, expression.title) for expression in expressions}
    for excused in set(MAY_BE_EMPTY) - titles:
        fault(f"{excused} may be empty, and is not there")

    if arguments.prometheus and arguments.metrics:
        check_running(expressions, arguments.prometheus.rstrip("/"), arguments.metrics)
    elif arguments.prometheus or arguments.metrics:
        sys.exit("--prometheus and --metrics go together")
    print(f"{len(expressions)} expressions in {len(dashboards)} dashboards and their rules; {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
