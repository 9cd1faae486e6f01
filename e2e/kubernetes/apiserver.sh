# The API server. Read by the scripts beside it, after settings.sh, process.sh and store.sh.
# shellcheck shell=bash

# start_apiserver FLAG...: with more flags than those it always has.
start_apiserver() {
    local pki=$KUBE/pki
    # Bound to the bridge, never to all interfaces; pods come through the Service named kubernetes.
    # The kubelet is asked by address, since nobody resolves the node's name.
    start kube-apiserver kube-apiserver --etcd-servers "$(store_endpoints)" \
        --bind-address "$GATEWAY" --advertise-address "$GATEWAY" --secure-port 6443 \
        --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
        --service-cluster-ip-range "$SERVICE_CIDR" --allow-privileged --authorization-mode Node,RBAC \
        --token-auth-file "$pki/tokens.csv" --client-ca-file "$pki/ca.crt" --anonymous-auth=false \
        --service-account-issuer "https://kubernetes.default.svc.$CLUSTER_DOMAIN" \
        --service-account-key-file "$pki/service-account.key" \
        --service-account-signing-key-file "$pki/service-account.key" \
        --kubelet-preferred-address-types InternalIP --kubelet-certificate-authority "$pki/ca.crt" \
        --kubelet-client-certificate "$pki/apiserver-to-kubelet.crt" \
        --kubelet-client-key "$pki/apiserver-to-kubelet.key" --delete-collection-workers 16 "$@"
    wait_for 60 kube-apiserver readiness "${KUBECTL[@]}" --request-timeout=2s get --raw /readyz
}
