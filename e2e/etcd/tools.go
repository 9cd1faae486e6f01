//go:build tools

// Package tools pins etcd, the store under the local Kubernetes and the peer that Balsa is compared with.
// v3.6.8 is the newest version whose benchmark can be built as a dependency.
package tools

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
	_ "go.etcd.io/etcd/v3/tools/benchmark"
)
