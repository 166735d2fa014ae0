"""Checks what schemas cannot: references between the objects of one release, names, and the security of every pod."""

import json
import re
import tomllib

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")


def pods(objects: list[dict]) -> list[tuple[str, dict]]:
    """Pod templates of Deployments and Jobs, and pods themselves, with the kind of what makes them."""
    templates = [(o["kind"], o["spec"]["template"]) for o in objects if o["kind"] in ("Deployment", "Job")]
    return templates + [(o["kind"], o) for o in objects if o["kind"] == "Pod"]


def one(objects: list[dict], kind: str) -> dict:
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def settings(objects: list[dict]) -> dict:
    """The settings file of the server."""
    texts = [o["data"]["settings.toml"] for o in objects if "settings.toml" in o.get("data", {})]
    return tomllib.loads(texts[0])


def selects(selector: dict, labels: dict) -> bool:
    return selector.items() <= labels.items()


def check_names(objects: list[dict]) -> list[str]:
    problems = []
    seen = set()
    for o in objects:
        name = o["metadata"]["name"]
        if len(name) > 63 or not NAME.fullmatch(name):
            problems.append(f"{o['kind']}: bad name {name}, {len(name)} characters")
        if (o["kind"], name) in seen:
            problems.append(f"{o['kind']} {name} occurs twice")
        seen.add((o["kind"], name))
    labels = [o["metadata"]["labels"] for o in objects] + [pod["metadata"]["labels"] for _, pod in pods(objects)]
    bad = {v for group in labels for v in group.values() if len(v) > 63 or not LABEL.fullmatch(v)}
    return problems + [f"bad value of a label: {value}" for value in sorted(bad)]


def check_selectors(objects: list[dict]) -> list[str]:
    """Each selector must select the pods of one kind of workload, and no others."""
    problems = []
    by_workload = {kind: pod["metadata"]["labels"] for kind, pod in pods(objects)}

    def expect(what: str, selector: dict, wanted: str) -> None:
        found = [kind for kind, labels in by_workload.items() if selects(selector, labels)]
        if found != [wanted]:
            problems.append(f"{what} selects the pods of {found}, expected {wanted}")

    for o in objects:
        what = f"{o['kind']} {o['metadata']['name']}"
        spec = o.get("spec", {})
        if o["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            expect(what, spec["selector"]["matchLabels"], "Deployment")
        elif o["kind"] == "Service":
            expect(what, spec["selector"], "Deployment")
        elif o["kind"] == "NetworkPolicy":
            wanted = "Job" if o["metadata"]["name"].endswith("-weights") else "Deployment"
            expect(what, spec["podSelector"]["matchLabels"], wanted)
        elif o["kind"] == "ServiceMonitor":
            services = [s for s in objects if s["kind"] == "Service"]
            found = [s for s in services if selects(spec["selector"]["matchLabels"], s["metadata"]["labels"])]
            ports = [port["name"] for service in found for port in service["spec"]["ports"]]
            if len(found) != 1 or not {e["port"] for e in spec["endpoints"]} <= set(ports):
                problems.append(f"{what} selects {len(found)} Services with the ports {ports}")
    spread = one(objects, "Deployment")["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
    for constraint in spread:
        # A user's own selector comes without this field.
        if "matchLabelKeys" in constraint:
            expect("a topology spread constraint", constraint["labelSelector"]["matchLabels"], "Deployment")
    return problems


def check_ports(objects: list[dict]) -> list[str]:
    problems = []
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    names = {port["name"]: port["containerPort"] for port in container["ports"]}
    server = settings(objects)["server"]
    listens = {int(server[key].rsplit(":", 1)[1]) for key in ("listen", "operations_listen")}
    if set(names.values()) != listens:
        problems.append(f"container ports {names}, but the settings listen on {listens}")
    used = [(f"probe {kind}", container[kind]["httpGet"]["port"]) for kind in container if kind.endswith("Probe")]
    services = {o["metadata"]["name"]: o["spec"]["ports"] for o in objects if o["kind"] == "Service"}
    used += [(f"Service {name}", port["targetPort"]) for name, ports in services.items() for port in ports]
    monitors = [e for o in objects if o["kind"] == "PodMonitor" for e in o["spec"]["podMetricsEndpoints"]]
    used += [("PodMonitor", endpoint["port"]) for endpoint in monitors]
    problems += [f"{what}: no container port {port}" for what, port in used if port not in names]
    backends = []
    for o in objects:
        if o["kind"] == "Ingress":
            paths = [path for rule in o["spec"]["rules"] for path in rule["http"]["paths"]]
            services_used = [path["backend"]["service"] for path in paths]
            backends += [("Ingress", service["name"], service["port"]["number"]) for service in services_used]
        if o["kind"] == "HTTPRoute":
            refs = [ref for rule in o["spec"]["rules"] for ref in rule["backendRefs"]]
            backends += [("HTTPRoute", ref["name"], ref["port"]) for ref in refs]
        if o["kind"] == "NetworkPolicy":
            ports = [port["port"] for rule in o["spec"]["ingress"] for port in rule["ports"]]
            problems += [f"NetworkPolicy: no container port {p}" for p in ports if p not in names.values()]
    for what, name, port in backends:
        if port not in [p["port"] for p in services.get(name, [])]:
            problems.append(f"{what}: no Service {name} with port {port}")
    public = [port for name, ports in services.items() if not name.endswith("-pods") for port in ports]
    if any(port["targetPort"] == "operations" for port in public):
        problems.append("the operations port is on the public Service")
    return problems


def check_pods(objects: list[dict]) -> list[str]:
    problems = []
    for kind, pod in pods(objects):
        spec = pod["spec"]
        security = spec["securityContext"]
        if not (
            security["runAsNonRoot"]
            # None of them where the platform chooses.
            and [security.get(key) for key in ("runAsUser", "runAsGroup", "fsGroup")] in ([65532] * 3, [None] * 3)
            and security["seccompProfile"] == {"type": "RuntimeDefault"}
            and spec["automountServiceAccountToken"] is False
            and spec["enableServiceLinks"] is False
        ):
            problems.append(f"pod of {kind}: not restricted")
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        mounted = set()
        for container in spec["containers"] + spec.get("initContainers", []):
            own = container["securityContext"]
            if own != {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }:
                problems.append(f"container {container['name']}: not restricted")
            if "memory" not in container["resources"]["limits"]:
                problems.append(f"container {container['name']}: no memory limit")
            mounts = container.get("volumeMounts", [])
            mounted |= {mount["name"] for mount in mounts}
            paths = [mount["mountPath"] for mount in mounts]
            names = [variable["name"] for variable in container.get("env", [])]
            if len(set(paths)) < len(paths) or len(set(names)) < len(names):
                problems.append(f"container {container['name']}: a path or variable occurs twice: {paths} {names}")
        if mounted != volumes:
            problems.append(f"pod of {kind}: volumes {sorted(volumes)}, mounted {sorted(mounted)}")
    return problems


def check_references(objects: list[dict]) -> list[str]:
    """Objects that this chart makes must exist if a pod or another object names them."""
    problems = []
    prefix = one(objects, "Deployment")["metadata"]["name"]
    existing = {(o["kind"], o["metadata"]["name"]) for o in objects}
    wanted = []
    for _, pod in pods(objects):
        for volume in pod["spec"].get("volumes", []):
            wanted.append(("ConfigMap", volume.get("configMap", {}).get("name")))
            wanted.append(("PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName")))
        wanted.append(("ServiceAccount", pod["spec"]["serviceAccountName"]))
    for o in objects:
        if target := o.get("spec", {}).get("scaleTargetRef"):
            wanted.append((target["kind"], target["name"]))
        if o["kind"] == "BackendTrafficPolicy":
            wanted += [(target["kind"], target["name"]) for target in o["spec"]["targetRefs"]]
    for kind, name in wanted:
        if name and name.startswith(prefix) and (kind, name) not in existing:
            problems.append(f"no {kind} {name}")
    return problems


def check_scaling_and_shutdown(objects: list[dict]) -> list[str]:
    problems = []
    deployment = one(objects, "Deployment")["spec"]
    scalers = [o for o in objects if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    if ("replicas" in deployment) == bool(scalers):
        problems.append("either the Deployment or an autoscaler sets the number of replicas")
    server = settings(objects)["server"]
    needed = (server["drain_delay_ms"] + server["drain_timeout_ms"]) / 1000 + 1
    if deployment["template"]["spec"]["terminationGracePeriodSeconds"] <= needed:
        problems.append(f"the grace period does not exceed {needed} s")
    return problems


def check(objects: list[dict]) -> list[str]:
    checks = [check_names, check_selectors, check_ports, check_pods, check_references, check_scaling_and_shutdown]
    return [problem for one_check in checks for problem in one_check(objects)]


def check_distinct(rendered: dict[str, list[dict]]) -> list[str]:
    texts: dict[str, str] = {}
    problems = []
    for name, objects in rendered.items():
        text = json.dumps(objects, sort_keys=True)
        if text in texts:
            problems.append(f"{name} renders the same as {texts[text]}")
        texts[text] = name
    return problems
