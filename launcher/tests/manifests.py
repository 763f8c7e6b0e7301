"""Checks rendered Kubernetes manifests, read from standard input, and prints what they hold.

The objects of Kubernetes itself are compared with its published schemas, unknown fields refused; so
are the pods inside of an MPIJob. What the MPI operator and the Prometheus operator define is compared
with the parts of their definitions that we use, unknown fields refused. Prints a JSON list of the
objects as PyYAML reads them.
"""

import json
import sys

import jsonschema
import kubernetes_validate
import yaml

VERSION = "1.31"


def of(properties, required=()):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


STRING = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = of({"name": STRING, "namespace": STRING, "labels": STRINGS}, ["name"])
REPLICA = of(
    {
        "replicas": COUNT,
        "restartPolicy": {"enum": ["Never", "OnFailure", "Always", "ExitCode"]},
        # Compared with the schema of Kubernetes on its own.
        "template": {"type": "object"},
    },
    ["template"],
)
RUN_POLICY = of(
    {
        "cleanPodPolicy": {"enum": ["None", "Running", "All"]},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "activeDeadlineSeconds": COUNT,
        "backoffLimit": {"type": "integer", "minimum": 0},
        "suspend": {"type": "boolean"},
    }
)
MPI_JOB = of(
    {
        "slotsPerWorker": COUNT,
        "launcherCreationPolicy": {"enum": ["AtStartup", "WaitForWorkersReady"]},
        "runLauncherAsWorker": {"type": "boolean"},
        "sshAuthMountPath": STRING,
        "mpiImplementation": {"enum": ["OpenMPI", "Intel", "MPICH"]},
        "runPolicy": RUN_POLICY,
        "mpiReplicaSpecs": of({"Launcher": REPLICA, "Worker": REPLICA}, ["Launcher"]),
    },
    ["mpiReplicaSpecs"],
)
RELABELING = of(
    {
        "action": {"enum": ["replace", "keep", "drop", "labelmap"]},
        "sourceLabels": {"type": "array", "items": STRING},
        "separator": {"type": "string"},
        "regex": {"type": "string"},
        "targetLabel": STRING,
        "replacement": {"type": "string"},
    }
)
ENDPOINT = of(
    {
        "port": STRING,
        "path": {"type": "string"},
        "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
        "relabelings": {"type": "array", "items": RELABELING},
    },
    ["port"],
)
POD_MONITOR = of(
    {
        "selector": of({"matchLabels": STRINGS, "matchExpressions": {"type": "array"}}),
        "podMetricsEndpoints": {"type": "array", "items": ENDPOINT, "minItems": 1},
        "namespaceSelector": {"type": "object"},
    },
    ["selector", "podMetricsEndpoints"],
)
OPERATORS = {
    ("kubeflow.org/v2beta1", "MPIJob"): MPI_JOB,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
}


def check(found):
    spec = OPERATORS.get((found["apiVersion"], found["kind"]))
    if spec is None:
        kubernetes_validate.validate(found, VERSION, strict=True)
        return
    whole = of(
        {"apiVersion": STRING, "kind": STRING, "metadata": METADATA, "spec": spec},
        ["metadata", "spec"],
    )
    jsonschema.validate(found, whole)
    for replica in found["spec"].get("mpiReplicaSpecs", {}).values():
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "pods"}}
        job["spec"] = {"template": replica["template"]}
        kubernetes_validate.validate(job, VERSION, strict=True)


def main():
    objects = list(yaml.safe_load_all(sys.stdin.buffer.read().decode()))
    for found in objects:
        try:
            check(found)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            path = "/".join(str(part) for part in error.path)
            sys.exit(f"{found['kind']}: {path}: {error.message}")
    json.dump(objects, sys.stdout)


main()
