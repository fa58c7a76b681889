//go:build tools

// Package tools pins the programs that are built straight from their own main
// packages.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
