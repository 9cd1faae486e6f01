# Where the local Kubernetes keeps its things and which addresses it has. Read by the scripts beside it.
# shellcheck shell=bash disable=SC2034

: "${BALSA_CACHE:=$HOME/.cache/balsa}"
: "${BALSA_KUBE:=/run/balsa-kube}"
# Volumes are not below $BALSA_KUBE, since /run is in memory on most machines.
: "${BALSA_VOLUMES:=/var/tmp/balsa-kube-volumes}"
# What the API server keeps its objects in: three processes of Balsa, or one of etcd, for comparison.
: "${BALSA_KUBE_STORE:=balsa}"
: "${CARGO_TARGET_DIR:=$BALSA_CACHE/target}"
KUBE=$BALSA_KUBE
export PATH="$BALSA_CACHE/bin:$PATH:/usr/sbin:/sbin"

NODE=balsa-node
BRIDGE=balsa0
# Pods, the node, the API server and DNS are on one bridge, whose gateway address is the node's.
POD_CIDR=10.213.77.0/24
GATEWAY=10.213.77.1
SERVICE_CIDR=10.213.78.0/24
KUBERNETES_SERVICE=10.213.78.1
CLUSTER_DOMAIN=cluster.local

CONTAINERD_SOCKET=$KUBE/containerd.sock
CGROUP=balsa-kube

KUBECTL=(kubectl --kubeconfig "$KUBE/kubeconfig")

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Whether the user has a cluster of their own that the scripts shall use.
uses_own_cluster() { [[ -n ${KUBECONFIG:-} && $KUBECONFIG != "$KUBE/kubeconfig" ]]; }
