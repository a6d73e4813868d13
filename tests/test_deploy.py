"""Test deploy/ against the schemas of Kubernetes, a SLURM controller, and the flags of our commands."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted((DEPLOY / "slurm").glob("*.sbatch"))
FLAGS = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "requeue", "open-mode"),
    *("signal", "output"),
}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            yield f"{path.name}: {document['kind']}", document


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the spec of every pod template, also inside custom resources of Ray."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pods(item)
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


@pytest.mark.parametrize("document", [pytest.param(entry, id=name) for name, entry in documents()])
def test_manifests_fit_the_schemas_of_kubernetes(document: dict[str, Any]) -> None:
    """Reject unknown fields; in custom resources of Ray, check the pods inside."""
    schemas = pytest.importorskip("kubernetes_validate")
    if not document["apiVersion"].startswith("ray.io/"):
        schemas.validate(document, "1.37", strict=True)
    found = list(pods(document))
    assert found or document["kind"] not in ("Job", "RayJob", "RayService")
    for number, spec in enumerate(found):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod{number}"}, "spec": spec}
        schemas.validate(pod, "1.37", strict=True)
    if document["kind"] == "RayService":
        (application,) = yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]
        assert application["import_path"] == "fusioner.serve.ray_serve:app"


def test_volumes_that_are_mounted_are_there() -> None:
    claims = {
        entry["metadata"]["name"] for _, entry in documents() if entry["kind"] in ("PersistentVolumeClaim", "ConfigMap")
    }
    for name, document in documents():
        for spec in pods(document):
            volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
            mounted = {mount["name"] for entry in spec["containers"] for mount in entry.get("volumeMounts", ())}
            assert mounted == set(volumes), name
            sources = [
                volume.get("persistentVolumeClaim") or volume.get("configMap") or {} for volume in volumes.values()
            ]
            assert {entry for source in sources for entry in source.values()} <= claims, name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_batch_scripts_are_sound(path: Path) -> None:
    text = path.read_text("utf-8")
    directives = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert directives
    assert set(directives) <= FLAGS
    assert text.index("#SBATCH") < text.index("set -euo pipefail")  # SLURM parses options up to the first command
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    if Path(shellcheck).exists():
        done = subprocess.run([shellcheck, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_slurm_itself_takes_the_scripts(tmp_path: Path) -> None:
    """Start a controller of eight simulated nodes and submit the scripts."""
    if not shutil.which("slurmctld") or not shutil.which("sbatch"):
        pytest.skip("needs SLURM's slurmctld and sbatch (Debian: slurmctld, slurm-client)")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    (tmp_path / "state").mkdir()
    settings = f"""ClusterName=test
        SlurmctldHost={socket.gethostname()}(127.0.0.1)
        SlurmUser={subprocess.check_output(["whoami"], text=True).strip()}
        AuthType=auth/none
        CredType=cred/none
        SlurmctldPort={port}
        SlurmctldPidFile={tmp_path}/pid
        StateSaveLocation={tmp_path}/state
        SlurmctldLogFile={tmp_path}/log
        ProctrackType=proctrack/linuxproc
        SelectType=select/cons_tres
        MpiDefault=none
        GresTypes=gpu
        ResumeProgram=/bin/true
        SuspendProgram=/bin/true
        SuspendTime=600
        SuspendExcParts=all
        NodeName=n[1-8] CPUs=64 RealMemory=256000 Gres=gpu:8 State=CLOUD
        PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP"""
    (tmp_path / "slurm.conf").write_text("\n".join(line.strip() for line in settings.splitlines()))
    environment = {"SLURM_CONF": str(tmp_path / "slurm.conf"), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    with subprocess.Popen(["slurmctld", "-D"], env=environment, stderr=subprocess.DEVNULL) as controller:
        try:
            while subprocess.run(["scontrol", "ping"], env=environment, capture_output=True).returncode:
                assert controller.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            for path in SCRIPTS:
                done = subprocess.run(["sbatch", "--test-only", path], env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{path.name}: {done.stderr}"
                assert " to start at " in done.stderr
        finally:
            controller.terminate()


def test_the_commands_have_the_flags_they_are_given() -> None:
    texts = [path.read_text("utf-8").replace("\\\n", " ") for path in (*SCRIPTS, *MANIFESTS)]
    for verb, start in (("batch", r"fusioner,? batch"), ("train", r"(?:fusioner|args: \[)\s*train")):
        calls = [match for text in texts for match in re.findall(rf"{start}[^\n]*(?:\n +--[^\n]*)*", text)]
        assert len(calls) >= 2
        used = {flag for call in calls for flag in re.findall(r"--[a-z-]+", call)}
        shown = subprocess.run([sys.executable, "-m", "fusioner", verb, "--help"], capture_output=True, text=True)
        assert used <= set(re.findall(r"--[a-z-]+", shown.stdout)), verb
