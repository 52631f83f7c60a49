"""Renders the chart into the plain manifests of this folder, and validates both without a cluster.

`cargo xtask chart` runs it, with the packages that it imports; with --check nothing is written, and it fails if a
manifest is not what the chart renders.
"""

import pathlib
import sys
import tomllib

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE.parent / "helm" / "handshake"
NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata:
  name: handshake
  labels:
    # Pods that see the node's processes are refused by the other two standards.
    pod-security.kubernetes.io/enforce: privileged
"""
MONITOR = "podmonitor.yaml"
# The manifests of this folder, and the values that each is rendered with.
FILES = {
    "handshake.yaml": {},
    "handshake-wire-only.yaml": {"wireOnly": True},
    MONITOR: {"podMonitor": {"enabled": True}},
}
# Rendered and validated only.
OTHERS = [
    {
        "image": {"repository": "registry.example/team/handshake", "tag": "1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {"listen": "[::]:9100", "labels": ["process", "pod_uid"], "max_series": 1000000, "log_level": 'a"\\b'},
        "extraCapabilities": ["SYS_RESOURCE"],
        "hostNetwork": True,
        "tracefs": False,
        "records": {"enabled": True},
        "priorityClassName": "system-node-critical",
        "podAnnotations": {"example.org/a": "b"},
        "podLabels": {"team": "network"},
        "serviceAccount": {"annotations": {"example.org/a": "b"}},
        "service": {"annotations": {"prometheus.io/scrape": "true"}},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        },
    },
    {
        "seccompProfile": None,
        "appArmorProfile": None,
        "seLinuxOptions": None,
        "service": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
    },
]
# Values that the chart must refuse.
WRONG = [{"wireonly": True}, {"config": {"listen": "9966"}}, {"config": {"listen": "[::]:1", "a": {"b": 1}}}]


def objects(chart, values):
    """The rendered objects, as text without what says that Helm manages them, by name of template."""
    rendered = chart.render(values, name="handshake", namespace="handshake")
    for path, text in sorted(rendered.items()):
        if path.endswith(".yaml") and text.strip():
            lines = text.strip().splitlines()
            kept = [line.rstrip() for line in lines if "app.kubernetes.io/managed-by" not in line]
            yield path.rsplit("/", 1)[1], "\n".join(kept) + "\n"


def versions(values):
    """The Kubernetes releases whose schemas the rendered objects must meet, from the chart's oldest on."""
    first = 25 if values.get("appArmorProfile", "") is None else 30
    found = sorted({it for it in kubernetes_validate.utils.all_versions() if int(it.split(".")[1]) >= first})
    assert len(found) > 4, f"schemas of too few releases: {found}"
    return found


def validate(text, values):
    document = yaml.safe_load(text)
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        # Not of Kubernetes itself: no schema.
        return
    for version in versions(values):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = "/".join(map(str, error.path))
            sys.exit(f"{document['kind']} with {values}, Kubernetes {version}: {place}: {error.message}")


def configuration(chart, values, text):
    """The configuration says what the values do, in TOML."""
    found = tomllib.loads(yaml.safe_load(text)["data"]["handshake.toml"])
    expected = chart.merge_values(values)["config"]
    if values.get("wireOnly"):
        expected["tls_libraries"] = "off"
    if values.get("records"):
        expected["records"] = "/var/log/handshake"
    assert found == expected, f"{found} is not {expected}"


def main(check):
    findings = lint(CHART, strict=True)
    problems = [it for it in findings["messages"] if it["severity"] > 1] + findings["errors"]
    assert not problems, f"lint: {problems}"
    stale = []
    with Chart.load(CHART) as chart:
        for values in [*FILES.values(), *OTHERS]:
            for name, text in objects(chart, values):
                validate(text, values)
                if name == "configmap.yaml":
                    configuration(chart, values, text)
        for values in WRONG:
            try:
                chart.validate_schema(chart.merge_values(values))
            except Exception:
                continue
            raise AssertionError(f"the chart accepts {values}")
        for name, values in FILES.items():
            found = dict(objects(chart, values))
            chosen = [found["podmonitor.yaml"]] if name == MONITOR else [NAMESPACE, *found.values()]
            head = "# Rendered from packaging/helm/handshake by `cargo xtask chart`: change that, not this.\n"
            content = head + "---\n".join(chosen)
            file = HERE / name
            if check:
                if not file.exists() or file.read_text() != content:
                    stale.append(name)
            else:
                file.write_text(content)
    if stale:
        sys.exit(f"not what the chart renders: {', '.join(stale)}; `cargo xtask chart` writes them")
    print(f"{len(FILES)} manifests, {len(OTHERS)} further sets of values, {len(WRONG)} refused")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
