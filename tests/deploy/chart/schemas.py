"""Validates objects strictly, so that an unknown field is an error: core kinds against the API schemas of the oldest and
the newest Kubernetes version, custom resources against the types of their projects."""

import ast
import json
import re
import subprocess
import zipfile
from pathlib import Path

import helm
import jsonschema
import kubernetes_validate
import yaml

CORE_GROUPS = {"v1", "apps/v1", "batch/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1"}
# The oldest version is that of `kubeVersion` in Chart.yaml.
OLDEST = re.search(r'^kubeVersion: ">=(\d+\.\d+)', (helm.CHART / "Chart.yaml").read_text(), re.M)[1]
VERSIONS = [OLDEST, kubernetes_validate.latest_version()]

# Envoy Gateway publishes no package with its types. These are the fields that the chart uses, from its API reference:
# gateway.envoyproxy.io/docs/api/extension_types, BackendTrafficPolicy in v1alpha1.
HEADER_HASH = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "header"],
    "properties": {
        "type": {"const": "Header"},
        "header": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
}
BACKEND_TRAFFIC_POLICY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "gateway.envoyproxy.io/v1alpha1"},
        "kind": {"const": "BackendTrafficPolicy"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["targetRefs", "loadBalancer"],
            "properties": {
                "targetRefs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["group", "kind", "name"],
                        "properties": {key: {"type": "string"} for key in ("group", "kind", "name", "sectionName")},
                    },
                },
                "loadBalancer": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["type", "consistentHash"],
                    "properties": {"type": {"const": "ConsistentHash"}, "consistentHash": HEADER_HASH},
                },
            },
        },
    },
}


def validate_core(document: dict) -> list[str]:
    problems = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(map(str, error.path))
            problems.append(f"{document['kind']} violates Kubernetes {version}: {path}: {error.message}")
    return problems


def check_core(objects: list[dict]) -> list[str]:
    return [problem for o in objects if o["apiVersion"] in CORE_GROUPS for problem in validate_core(o)]


def is_policy(document: dict) -> bool:
    return document["kind"] == "BackendTrafficPolicy"


def check_policies(rendered: dict[str, list[dict]]) -> list[str]:
    validator = jsonschema.Draft202012Validator(BACKEND_TRAFFIC_POLICY)
    policies = [(name, o) for name, objects in rendered.items() for o in objects if is_policy(o)]
    return [f"{name}: {error.message}" for name, policy in policies for error in validator.iter_errors(policy)]


def check_custom(rendered: dict[str, list[dict]], node_modules: Path) -> list[str]:
    custom = [
        {"set": name, "object": o}
        for name, objects in rendered.items()
        for o in objects
        if o["apiVersion"] not in CORE_GROUPS and not is_policy(o)
    ]
    node = ["node", "custom_resources.mjs"]
    run = subprocess.run(node, cwd=node_modules, input=json.dumps(custom), capture_output=True, text=True)
    return (run.stdout or run.stderr).splitlines() if run.returncode else []


def kserve_type(wheel: Path, name: str) -> dict[str, str]:
    """Fields of a type of KServe's Python client, with their types. The client cannot be imported without its many
    dependencies, so its source is read."""
    module = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(f"kserve/models/{module}.py"))
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    return {field: tables["openapi_types"][key] for key, field in tables["attribute_map"].items()}


def check_kserve(wheel: Path) -> list[str]:
    """The predictor of an InferenceService is the spec of a pod, with more fields of KServe. Both parts are checked."""
    document = yaml.load((helm.ROOT / "deploy/kserve/inference-service.yaml").read_text(), helm.UniqueKeys)
    problems = []
    kinds = {"int": int, "str": str, "bool": bool}
    pod = {}
    levels = [
        ("V1beta1InferenceService", document),
        ("V1beta1InferenceServiceSpec", document["spec"]),
        ("V1beta1PredictorSpec", document["spec"]["predictor"]),
    ]
    pod_fields = kserve_type(wheel, "V1beta1PodSpec")
    for name, value in levels:
        fields = kserve_type(wheel, name)
        for key, content in value.items():
            if key not in fields:
                problems.append(f"{name} has no field {key}")
            elif name == "V1beta1PredictorSpec" and key in pod_fields:
                pod[key] = content
            elif fields[key] in kinds and not isinstance(content, kinds[fields[key]]):
                problems.append(f"{name}.{key} is not of type {fields[key]}")
    as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"], "spec": pod}
    return problems + validate_core(as_pod)
