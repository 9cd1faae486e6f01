//go:build tools

// Package tools pins the etcd that has the newest API: the peer of the differential test besides the one of e2e/etcd.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
)
