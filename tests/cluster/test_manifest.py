"""docs/rayjob.yaml, a training on Kubernetes: by the schema of KubeRay, and a command of ours."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from dpl_ray import load_config
from tests.documents import ROOT

MANIFEST = yaml.safe_load((ROOT / "docs" / "rayjob.yaml").read_text())


def test_the_manifest_is_one_of_kuberay() -> None:
    schema = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(MANIFEST)
    for broken in ({"entrypiont": "x"}, {"backoffLimit": "3"}, {"rayClusterSpec": {"headGroupSpec": {}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(MANIFEST | {"spec": MANIFEST["spec"] | broken}, schema)


def test_the_command_of_the_manifest_is_one_of_ours_and_goes_on_where_it_stopped() -> None:
    program, job, *fields = shlex.split(MANIFEST["spec"]["entrypoint"])
    assert (program, job) == ("dpl-ray", "train")
    config = load_config(fields)
    assert config.run.name is not None
    assert config.run.storage_path.startswith("s3://")
    workers = MANIFEST["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    (container,) = workers["template"]["spec"]["containers"]
    assert config.scale.use_gpu == ("nvidia.com/gpu" in container["resources"]["limits"])
    assert config.scale.num_workers == workers["replicas"] <= workers["maxReplicas"]
    assert config.scale.cpus_per_worker < int(container["resources"]["requests"]["cpu"]), "the others read the pool"
    ray = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert f"ray=={MANIFEST['spec']['rayClusterSpec']['rayVersion']}" == ray
