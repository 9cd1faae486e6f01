//go:build tools

// Package tools pins helm, which the tests of the chart need.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
