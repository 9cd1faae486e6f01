# The store under the API server: three processes of Balsa, or one of etcd for comparison. Read by the scripts beside it,
# after settings.sh and process.sh.
# shellcheck shell=bash disable=SC2034

case $BALSA_KUBE_STORE in
    balsa) STORE_MEMBERS=(0 1 2) ;;
    etcd) STORE_MEMBERS=(0) ;;
    *) fail "BALSA_KUBE_STORE is $BALSA_KUBE_STORE: balsa or etcd" ;;
esac

# The name of a member is that of its pid file and its log as well.
store_name() { printf 'store-%s-%d' "$BALSA_KUBE_STORE" "$1"; }
# Not etcd's own ports: a node under test may have those.
store_client() { printf 'http://127.0.0.1:%d' $((23790 + $1)); }
store_peer() { printf 'http://127.0.0.1:%d' $((23800 + $1)); }
store_metrics() { printf 'http://127.0.0.1:%d' $((23810 + $1)); }

# each FUNCTION PREFIX: what a function says of every member, with a comma between.
each() {
    local member all=""
    for member in "${STORE_MEMBERS[@]}"; do
        all+="${all:+,}${2:+$(store_name "$member")=}$("$1" "$member")"
    done
    printf '%s' "$all"
}

store_words() {
    case $BALSA_KUBE_STORE in
        balsa) printf 'three processes of Balsa' ;;
        etcd) printf 'etcd' ;;
    esac
}

store_endpoints() { each store_client ""; }

# The program is copied, so that a build does not replace what runs.
provide_store_program() {
    mkdir -p "$KUBE/bin"
    if [[ $BALSA_KUBE_STORE == balsa ]]; then
        strip -o "$KUBE/bin/balsa" "$CARGO_TARGET_DIR/debug/balsa"
    fi
}

# The same flags for both: whatever starts etcd starts Balsa. Their files are in memory where $BALSA_KUBE is.
start_member() {
    local name program
    name=$(store_name "$1")
    case $BALSA_KUBE_STORE in
        balsa) program=("$KUBE/bin/balsa" --drain-delay 0s) ;;
        etcd) program=(etcd --unsafe-no-fsync --logger zap --log-level warn) ;;
    esac
    start "$name" "${program[@]}" --name "$name" --data-dir "$KUBE/store/$name" \
        --listen-client-urls "$(store_client "$1")" --advertise-client-urls "$(store_client "$1")" \
        --listen-peer-urls "$(store_peer "$1")" --initial-advertise-peer-urls "$(store_peer "$1")" \
        --listen-metrics-urls "$(store_metrics "$1")" \
        --initial-cluster "$(each store_peer name)" --initial-cluster-token balsa-kube
}

wait_for_member() {
    wait_for 30 "$(store_name "$1")" "readiness" curl -fsS --max-time 2 "$(store_metrics "$1")/readyz"
}

start_store() {
    local member
    provide_store_program
    for member in "${STORE_MEMBERS[@]}"; do start_member "$member"; done
    for member in "${STORE_MEMBERS[@]}"; do wait_for_member "$member"; done
}
