{{/* Prefix of the names of all objects. At most 44 characters, so that the longest suffix ("-weights-" and a hash) fits
into the 63 that Kubernetes allows. */}}
{{- define "blip.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels that never change, for selectors. Call with (dict "root" $ "component" NAME). */}}
{{- define "blip.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "blip.labels" -}}
{{ include "blip.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{- define "blip.serviceAccount" -}}
{{- $default := ternary (include "blip.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $default .Values.serviceAccount.name -}}
{{- end }}

{{- define "blip.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}{{ if .Values.gpu.enabled }}{{ .Values.gpu.imageTagSuffix }}{{ end }}
{{- end -}}
{{- end }}

{{- define "blip.port" -}}
{{- .Values.service.port | int | default (ternary 443 80 (ne .Values.tls.secretName "")) -}}
{{- end }}

{{/* Name of the public port of pods and Services. */}}
{{- define "blip.portName" -}}
{{- ternary "https" "http" (ne .Values.tls.secretName "") -}}
{{- end }}

{{- define "blip.autoscaled" -}}
{{- if or .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled }}true{{ end -}}
{{- end }}

{{/* Drain delay and timeout, a second for the last responses, and the margin; rounded up to seconds. */}}
{{- define "blip.gracePeriod" -}}
{{- $drain := .Values.drain -}}
{{- add (divf (add $drain.delayMs $drain.timeoutMs) 1000 | ceil) 1 $drain.marginSeconds -}}
{{- end }}

{{- define "blip.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: ["ALL"] }
{{- end }}

{{/* What every pod of this chart has in its spec. */}}
{{- define "blip.podBasics" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{/* The container that downloads the weights, for the init container and the Job. It gets the hub's settings from its
environment, because the settings file names API keys and certificates, which are mounted only into the server. */}}
{{- define "blip.downloadContainer" -}}
name: download
image: {{ include "blip.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - download
  {{- range .Values.models }}
  {{- if not (or (eq .source "demo") (hasPrefix "/" .source)) }}
  - {{ .source | quote }}
  {{- end }}
  {{- end }}
{{- if or .Values.settings.hub .Values.hub.tokenSecret.name }}
env:
  {{- range $key, $value := .Values.settings.hub }}
  - { name: BLIP__HUB__{{ upper $key }}, value: {{ ternary $value (toRawJson $value) (kindIs "string" $value) | quote }} }
  {{- end }}
  {{- with .Values.hub.tokenSecret }}
  {{- if .name }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef: { name: {{ .name | quote }}, key: {{ .key | quote }} }
  {{- end }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "blip.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml .Values.weights.downloadResources | nindent 2 }}
volumeMounts:
  - { name: tmp, mountPath: /tmp }
  - { name: weights, mountPath: /weights }
{{- end }}

{{- define "blip.tmpVolume" -}}
name: tmp
emptyDir: { medium: Memory, sizeLimit: 64Mi }
{{- end }}

{{/* Job spec that fills the shared volume. The hash of it is part of the Job's name, because the spec of a Job cannot be
changed: other models or another image make another Job. */}}
{{- define "blip.weightsJobSpec" -}}
# Downloaded data stays in the volume, so a retry resumes the download.
backoffLimit: 10
template:
  metadata:
    labels:
      {{- include "blip.selector" (dict "root" . "component" "weights") | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    serviceAccountName: {{ include "blip.serviceAccount" . }}
    {{- include "blip.podBasics" . | trim | nindent 4 }}
    {{- with .Values.nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .Values.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - {{ include "blip.downloadContainer" . | nindent 8 | trim }}
    volumes:
      - {{ include "blip.tmpVolume" . | nindent 8 | trim }}
      - name: weights
        persistentVolumeClaim: { claimName: {{ include "blip.fullname" . }}-weights }
{{- end }}

{{/* Egress to DNS, which may be on a node-local address. */}}
{{- define "blip.egressDns" -}}
- ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
{{- end }}

{{/* Public addresses: IPv4 without the private networks, and the global unicast addresses of IPv6. */}}
{{- define "blip.publicBlocks" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    {{- with .Values.networkPolicy.privateCidrs }}
    except:
      {{- toYaml . | nindent 6 }}
    {{- end }}
- ipBlock: { cidr: "2000::/3" }
{{- end }}

{{/* Egress to public addresses. Call with (dict "root" $ "ports" LIST). */}}
{{- define "blip.egressPublic" -}}
- to:
    {{- include "blip.publicBlocks" .root | nindent 4 }}
  ports:
    {{- range .ports }}
    - { port: {{ . }}, protocol: TCP }
    {{- end }}
{{- end }}

{{/* Bytes of a memory quantity such as 6Gi, 500M or 1000000, which the schema has checked. */}}
{{- define "blip.bytes" -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $units = merge $units (dict "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000) -}}
{{- $text := . | toString -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- mulf $number (default 1 (get $units $unit)) | int64 -}}
{{- end }}

{{/* The settings file. TOML accepts JSON's strings, numbers, booleans and lists as values. */}}
{{- define "blip.settings" -}}
{{- $server := dict "listen" "0.0.0.0:8080" "operations_listen" "0.0.0.0:9090" -}}
{{- $_ := set $server "drain_delay_ms" .Values.drain.delayMs -}}
{{- $_ := set $server "drain_timeout_ms" .Values.drain.timeoutMs -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $server "tls_certificate" "/etc/blip-server/tls/tls.crt" -}}
{{- $_ := set $server "tls_key" "/etc/blip-server/tls/tls.key" -}}
{{- end -}}
{{- $sections := dict "server" $server "log" (dict "format" "json") -}}
{{- if .Values.auth.keysSecret.name -}}
{{- $_ := set $sections "auth" (dict "keys_file" "/etc/blip-server/keys/keys") -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}
{{- /* Without this, a pod that gets no GPU would compute on its CPU. */ -}}
{{- $_ := set $sections "compute" (dict "device" "cuda") -}}
{{- end -}}
{{- $sections = mergeOverwrite $sections (deepCopy .Values.settings) -}}
{{- range $section, $keys := $sections }}
{{- if $keys }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ $value | toRawJson }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.models }}
[[models]]
{{- range $key, $value := . }}
{{ $key }} = {{ $value | toRawJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Spec of an Ingress. Call with (dict "root" $ "service" NAME "port" PORT). */}}
{{- define "blip.ingressSpec" -}}
{{- with .root.Values.ingress.className }}
ingressClassName: {{ . | quote }}
{{- end }}
{{- with .root.Values.ingress.tls }}
tls:
  {{- toYaml . | nindent 2 }}
{{- end }}
rules:
  {{- range .root.Values.ingress.hosts }}
  - host: {{ . | quote }}
    http:
      paths:
        - path: /
          pathType: Prefix
          backend:
            service: { name: {{ $.service }}, port: { number: {{ $.port }} } }
  {{- end }}
{{- end }}

{{/* Login of KEDA at Prometheus. */}}
{{- define "blip.authenticationRef" -}}
{{- with .Values.autoscaling.keda.authenticationRef -}}
authenticationRef: { name: {{ . | quote }} }
{{- end -}}
{{- end }}
