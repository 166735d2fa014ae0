{{/* The parts of the Deployment's pod template. */}}

{{/* On which nodes the pods run. */}}
{{- define "blip.placement" -}}
{{- $gpu := .Values.gpu -}}
{{- with default .Values.runtimeClassName (ternary $gpu.runtimeClassName "" $gpu.enabled) }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with merge dict .Values.nodeSelector (ternary $gpu.nodeSelector dict $gpu.enabled) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat .Values.tolerations (ternary $gpu.tolerations list $gpu.enabled) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "blip.selector" (dict "root" $ "component" "server") | nindent 8 }}
    # Spread the pods of each version on their own, so that an update ends well spread.
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "blip.serverContainer" -}}
name: blip-server
image: {{ include "blip.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
# This file replaces the one of the image, because the last --config wins.
args: [serve, --config, /etc/blip-server/settings/settings.toml]
{{- with include "blip.env" . | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - { name: {{ include "blip.portName" . }}, containerPort: 8080 }
  # Probes and Prometheus use a separate listener, so that clients that fill the public one cannot fail a probe.
  - { name: operations, containerPort: 9090 }
# Until the startup probe succeeds, no other probe runs.
startupProbe:
  httpGet: { path: /health/ready, port: operations }
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ divf .Values.startupSeconds 2 | ceil }}
# Liveness does not depend on load: a full queue answers 200 here, a worker that hangs 503.
livenessProbe:
  httpGet: { path: /health/live, port: operations }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: { path: /health/ready, port: operations }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
securityContext:
  {{- include "blip.containerSecurity" . | nindent 2 }}
resources:
  {{- $resources := deepCopy .Values.resources }}
  {{- if .Values.gpu.enabled }}
  {{- $_ := set $resources "limits" (merge (dict .Values.gpu.resourceName 1) (default dict $resources.limits)) }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
volumeMounts:
  - { name: tmp, mountPath: /tmp }
  - { name: settings, mountPath: /etc/blip-server/settings, readOnly: true }
  {{- if .Values.auth.keysSecret.name }}
  - { name: keys, mountPath: /etc/blip-server/keys, readOnly: true }
  {{- end }}
  {{- if .Values.tls.secretName }}
  - { name: tls, mountPath: /etc/blip-server/tls, readOnly: true }
  {{- end }}
  {{- if ne .Values.weights.mode "none" }}
  - name: weights
    mountPath: /weights
    readOnly: true
    {{- if and (eq .Values.weights.mode "existingClaim") .Values.weights.existingClaim.subPath }}
    subPath: {{ .Values.weights.existingClaim.subPath | quote }}
    {{- end }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "blip.env" -}}
{{- if ne .Values.weights.mode "none" }}
- { name: HF_HUB_OFFLINE, value: "1" }
{{- end }}
{{- with .Values.tracing }}
{{- if .enabled }}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }} }
- { name: OTEL_TRACES_SAMPLER, value: {{ .sampler }} }
{{- with .samplerArg }}
- { name: OTEL_TRACES_SAMPLER_ARG, value: {{ . | quote }} }
{{- end }}
- { name: OTEL_SERVICE_NAME, value: {{ default (include "blip.fullname" $) .serviceName | quote }} }
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
{{- $attributes := list "k8s.namespace.name=$(POD_NAMESPACE)" "k8s.pod.name=$(POD_NAME)" "k8s.node.name=$(NODE_NAME)" }}
{{- range $name, $value := .resourceAttributes }}{{ $attributes = append $attributes (printf "%s=%s" $name $value) }}{{ end }}
- { name: OTEL_RESOURCE_ATTRIBUTES, value: {{ join "," $attributes | quote }} }
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "blip.volumes" -}}
- {{ include "blip.tmpVolume" . | nindent 2 | trim }}
- name: settings
  configMap: { name: {{ include "blip.fullname" . }}-settings }
{{- with .Values.auth.keysSecret }}
{{- if .name }}
- name: keys
  secret:
    secretName: {{ .name | quote }}
    defaultMode: 0440
    items: [{ key: {{ .key | quote }}, path: keys }]
{{- end }}
{{- end }}
{{- with .Values.tls.secretName }}
- name: tls
  secret: { secretName: {{ . | quote }}, defaultMode: 0440 }
{{- end }}
{{- with .Values.weights }}
{{- if eq .mode "perReplica" }}
- name: weights
  {{- if .storageClass }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ .storageClass | quote }}
        resources:
          requests: { storage: {{ .size }} }
  {{- else }}
  emptyDir: { sizeLimit: {{ .size }} }
  {{- end }}
{{- else if eq .mode "shared" }}
- name: weights
  persistentVolumeClaim: { claimName: {{ include "blip.fullname" $ }}-weights, readOnly: true }
{{- else if eq .mode "existingClaim" }}
- name: weights
  persistentVolumeClaim: { claimName: {{ .existingClaim.name | quote }}, readOnly: true }
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
