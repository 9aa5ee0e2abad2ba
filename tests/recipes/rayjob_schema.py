"""A reduced JSON schema of KubeRay's RayJob (v1): fields that its CRD has from KubeRay 1.5.1 to 1.7.0.

Objects are closed, so that a misspelt field is found; of a pod only the fields that a recipe may need are listed.
"""

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}
YES_OR_NO: dict[str, Any] = {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
ANYTHING: dict[str, Any] = {"type": "object"}
QUANTITIES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|[kMGTPE]i?)?$"},
}


def closed(required: str = "", **properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def choice(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


CONTAINER = closed(
    "name image",
    name=TEXT,
    image=TEXT,
    imagePullPolicy=choice("Always", "IfNotPresent", "Never"),
    command=listed(TEXT),
    args=listed(TEXT),
    workingDir=TEXT,
    env=listed(closed("name", name=TEXT, value=TEXT, valueFrom=ANYTHING)),
    envFrom=listed(ANYTHING),
    ports=listed(closed("containerPort", containerPort=WHOLE, name=TEXT, protocol=TEXT)),
    resources=closed(limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=listed(closed("name mountPath", name=TEXT, mountPath=TEXT, subPath=TEXT, readOnly=YES_OR_NO)),
    securityContext=ANYTHING,
)
VOLUME = closed(
    "name",
    name=TEXT,
    persistentVolumeClaim=closed("claimName", claimName=TEXT, readOnly=YES_OR_NO),
    emptyDir=closed(medium=TEXT, sizeLimit={"type": ["string", "integer"]}),
    hostPath=closed("path", path=TEXT, type=TEXT),
    secret=ANYTHING,
    configMap=ANYTHING,
    nfs=closed("server path", server=TEXT, path=TEXT, readOnly=YES_OR_NO),
)
POD = closed(
    "spec",
    metadata=closed(labels=TEXTS, annotations=TEXTS),
    spec=closed(
        "containers",
        containers={**listed(CONTAINER), "minItems": 1},
        initContainers=listed(CONTAINER),
        volumes=listed(VOLUME),
        nodeSelector=TEXTS,
        tolerations=listed(ANYTHING),
        affinity=ANYTHING,
        hostNetwork=YES_OR_NO,
        imagePullSecrets=listed(closed("name", name=TEXT)),
        priorityClassName=TEXT,
        serviceAccountName=TEXT,
        restartPolicy=TEXT,
        runtimeClassName=TEXT,
        schedulerName=TEXT,
        securityContext=ANYTHING,
        terminationGracePeriodSeconds=WHOLE,
    ),
)
HEAD = closed(
    "template",
    template=POD,
    rayStartParams=TEXTS,
    serviceType=TEXT,
    enableIngress=YES_OR_NO,
    headService=ANYTHING,
    labels=TEXTS,
    resources=TEXTS,
)
WORKERS = closed(
    "groupName minReplicas maxReplicas template",
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    numOfHosts=WHOLE,
    idleTimeoutSeconds=WHOLE,
    rayStartParams=TEXTS,
    scaleStrategy=ANYTHING,
    suspend=YES_OR_NO,
    labels=TEXTS,
    resources=TEXTS,
    template=POD,
)
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode=choice("disabled", "token")),
    headGroupSpec=HEAD,
    workerGroupSpecs=listed(WORKERS),
    autoscalerOptions=ANYTHING,
    enableInTreeAutoscaling=YES_OR_NO,
    gcsFaultToleranceOptions=ANYTHING,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    suspend=YES_OR_NO,
)
RAYJOB = closed(
    "apiVersion kind metadata spec",
    apiVersion=choice("ray.io/v1"),
    kind=choice("RayJob"),
    metadata=closed("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=closed(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        runtimeEnvYAML=TEXT,
        rayClusterSpec=CLUSTER,
        clusterSelector=TEXTS,
        submissionMode=choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        submitterConfig=ANYTHING,
        submitterPodTemplate=POD,
        shutdownAfterJobFinishes=YES_OR_NO,
        ttlSecondsAfterFinished=WHOLE,
        activeDeadlineSeconds=WHOLE,
        backoffLimit=WHOLE,
        deletionStrategy=ANYTHING,
        jobId=TEXT,
        managedBy=TEXT,
        metadata=TEXTS,
        suspend=YES_OR_NO,
    ),
)
