# Three local processes of etcd or of Balsa, for the benchmarks beside this file. Sourced, not run.

state=$(mktemp -d /var/tmp/balsa-bench.XXXXXX)
pids=()
trap 'kill -9 "${pids[@]}" 2>/dev/null || true; rm -rf "$state"' EXIT

port=${PORT:-24379}

# A certificate of these machines alone, for clients and servers.
certificate() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=benchmark \
        -addext subjectAltName=IP:127.0.0.1 -keyout "$state/key.pem" -out "$state/cert.pem" 2>/dev/null
}

# start PROGRAM [FLAGS]: three members, on ports from $PORT on, for clients behind TLS if $tls is set; sets pids, endpoints and
# client, which are flags that etcdctl and benchmark need.
start() {
    local program=$1 i cluster="" endpoint flags=("${@:2}") scheme=http
    client=()
    if [ -n "${tls:-}" ]; then
        scheme=https client=(--cacert="$state/cert.pem")
        flags+=(--cert-file="$state/cert.pem" --key-file="$state/key.pem")
    fi
    pids=() endpoints=""
    for i in 0 1 2; do cluster+="${cluster:+,}m$i=http://127.0.0.1:$((port + 1 + 10 * i))"; done
    for i in 0 1 2; do
        endpoint="$scheme://127.0.0.1:$((port + 10 * i))"
        endpoints+="${endpoints:+,}$endpoint"
        "$program" --name="m$i" --data-dir="$state/m$i" \
            --listen-client-urls="$endpoint" --advertise-client-urls="$endpoint" \
            --listen-peer-urls="http://127.0.0.1:$((port + 1 + 10 * i))" \
            --initial-advertise-peer-urls="http://127.0.0.1:$((port + 1 + 10 * i))" \
            --initial-cluster="$cluster" "${flags[@]}" >"$state/m$i.log" 2>&1 &
        pids+=($!)
    done
    for _ in $(seq 200); do
        etcdctl --endpoints="$endpoints" "${client[@]}" --command-timeout=1s endpoint health >/dev/null 2>&1 && return
        sleep 0.1
    done
    tail -n 5 "$state"/m*.log >&2
    return 1
}

stop() {
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
    rm -rf "${state:?}"/m*
    pids=()
}

# tool COMMAND…: etcd's `benchmark` against the servers; its report is in $state/out. What it says when it fails is shown.
tool() {
    benchmark --endpoints="$endpoints" "${client[@]}" "$@" >"$state/out" 2>"$state/err" && return
    tail -n 5 "$state/err" "$state"/m*.log >&2
    return 1
}

# CPU time of the servers so far, in clock ticks of 10 ms.
ticks() {
    local pid sum=0
    for pid in "${pids[@]}"; do
        sum=$((sum + $(awk '{print $14 + $15}' "/proc/$pid/stat")))
    done
    echo "$sum"
}

machine() {
    echo "$(nproc) cores, $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo)"
}
