{{- define "balsa-operator.labels" -}}
app.kubernetes.io/name: balsa-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{- define "balsa-operator.selector" -}}
app.kubernetes.io/name: balsa-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
