"""Checks what a change of values changes: a setting replaces the pods, a model replaces the Job, and nothing else does."""

import copy

import helm


def parts(values: dict) -> tuple[dict, str, dict]:
    """The Deployment's pod template, and the Job's name and spec."""
    objects, _ = helm.render(values)
    deployment = next(o for o in objects if o["kind"] == "Deployment")
    job = next(o for o in objects if o["kind"] == "Job")
    return deployment["spec"]["template"], job["metadata"]["name"], job["spec"]


def check() -> list[str]:
    base = next(s.values for s in helm.value_sets("values") if s.name == "official-shared")
    pods, job, job_spec = parts(base)
    # A change, and whether it replaces the pods and the Job.
    cases = [
        ({"settings": {"engine": {"capacity_rows": 100}}}, True, False),
        ({"models": [{"source": "Salesforce/blip-vqa-base"}]}, True, True),
        ({"image": {"tag": "0.1.1"}}, True, True),
        ({"settings": {"hub": {"attempts": 9}}}, True, True),
        ({"replicaCount": 5}, False, False),
        ({"service": {"port": 8000}}, False, False),
        ({"networkPolicy": {"enabled": False}}, False, False),
    ]
    problems = []
    for change, replaces_pods, replaces_job in cases:
        other_pods, other_job, other_spec = parts({**copy.deepcopy(base), **change})
        if (other_pods != pods) != replaces_pods:
            problems.append(f"{change}: pods are {'' if replaces_pods else 'not '}expected to be replaced")
        if (other_job != job) != replaces_job:
            problems.append(f"{change}: the Job is {'' if replaces_job else 'not '}expected to be replaced")
        if (other_job != job) != (other_spec != job_spec):
            problems.append(f"{change}: the Job's name must change exactly with its spec, which is immutable")
    return problems
