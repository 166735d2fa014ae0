{{/* Combinations of values that cannot work, each with what to do. The schema checks single values. */}}
{{- define "blip.checks" -}}
{{- $v := .Values -}}
{{- if and $v.autoscaling.hpa.enabled $v.autoscaling.keda.enabled -}}
{{- fail "autoscaling.hpa and autoscaling.keda exclude each other: KEDA makes a HorizontalPodAutoscaler of its own, and two of them would fight over the replicas; enable one" -}}
{{- end -}}
{{- if and $v.autoscaling.hpa.enabled (not (default dict $v.resources.requests).cpu) -}}
{{- fail "resources.requests.cpu is empty: autoscaling.hpa measures the use of CPU in percent of it" -}}
{{- end -}}
{{- if and $v.autoscaling.keda.enabled (not $v.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress is empty: set it to the URL of the Prometheus that scrapes the pods" -}}
{{- end -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- $remote := list -}}
{{- range $v.models -}}
{{- if not (or (eq .source "demo") (hasPrefix "/" .source)) -}}{{- $remote = append $remote .source -}}{{- end -}}
{{- end -}}
{{- if and $remote (eq $v.weights.mode "none") -}}
{{- fail (printf "the model %s needs weights: set weights.mode to perReplica, shared or existingClaim" (first $remote)) -}}
{{- end -}}
{{- if and (not $remote) (has $v.weights.mode (list "perReplica" "shared")) -}}
{{- fail (printf "weights.mode is %s, but `models` names no hub id to download" $v.weights.mode) -}}
{{- end -}}
{{- if and (eq $v.weights.mode "existingClaim") (not $v.weights.existingClaim.name) -}}
{{- fail "weights.existingClaim.name is empty: set it to the name of the PersistentVolumeClaim with the weights" -}}
{{- end -}}
{{- include "blip.checkSettings" . -}}
{{- if and (or $v.ingress.enabled $v.httpRoute.enabled) $v.networkPolicy.enabled (not $v.networkPolicy.clientNamespaces) -}}
{{- fail "networkPolicy.clientNamespaces is empty, so the network policy would block the ingress controller or gateway: list its namespace, or set networkPolicy.enabled to false" -}}
{{- end -}}
{{- if and $v.service.externalTrafficPolicy (eq $v.service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy needs service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- fail "ingress.hosts is empty: name at least one host" -}}
{{- end -}}
{{- if and $v.ingress.affinityByImage (not (and $v.ingress.enabled $v.ingress.nginx)) -}}
{{- fail "ingress.affinityByImage uses annotations of ingress-nginx: set ingress.enabled and ingress.nginx too" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs is empty: name the Gateway" -}}
{{- end -}}
{{- if and $v.httpRoute.affinityByImage (not $v.httpRoute.enabled) -}}
{{- fail "httpRoute.affinityByImage needs httpRoute.enabled" -}}
{{- end -}}
{{- if and $v.tracing.enabled (not $v.tracing.endpoint) -}}
{{- fail "tracing.endpoint is empty: set it to the URL of an OTLP collector" -}}
{{- end -}}
{{- if and (eq (int $v.strategy.maxSurge) 0) (eq (int $v.strategy.maxUnavailable) 0) -}}
{{- fail "strategy.maxSurge and strategy.maxUnavailable are both 0, so an update could not replace any pod" -}}
{{- end -}}
{{- end }}

{{/* Settings that other values of the chart own, or that must not be readable in a ConfigMap. */}}
{{- define "blip.checkSettings" -}}
{{- $owned := dict
  "server.listen" "the chart sets it to port 8080"
  "server.operations_listen" "the chart sets it to port 9090, which probes use"
  "server.tls_certificate" "use tls.secretName"
  "server.tls_key" "use tls.secretName"
  "server.drain_delay_ms" "use drain.delayMs, from which the grace period is computed"
  "server.drain_timeout_ms" "use drain.timeoutMs, from which the grace period is computed"
  "auth.keys" "API keys belong into a Secret: use auth.keysSecret"
  "auth.keys_file" "use auth.keysSecret"
  "hub.token" "tokens belong into a Secret: use hub.tokenSecret"
  "hub.cache" "weights are at /weights"
  "hub.offline" "weights.mode decides who downloads" -}}
{{- range $section, $keys := .Values.settings -}}
{{- range $key, $_ := $keys -}}
{{- with get $owned (printf "%s.%s" $section $key) -}}
{{- fail (printf "settings.%s.%s cannot be set here: %s" $section $key .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
