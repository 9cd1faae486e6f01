# Starting programs in the background, and ending exactly those again: a pid file holds the process id with the start
# time of the process, so that an id which the kernel gave to another process since is never taken for ours.
# shellcheck shell=bash

# The start time of a process in clock ticks since boot, empty when there is no such process or it is a zombie.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The program's name may contain spaces and parentheses: count from the last one.
    read -r -a stat <<<"${stat##*) }"
    [[ ${stat[0]} == Z ]] || printf '%s' "${stat[19]}"
}

# start NAME COMMAND...: runs a command as a daemon with its output in logs/NAME.log.
start() {
    local name=$1 pid
    shift
    # File descriptor 9 holds the lock of up, which must not live on in a daemon.
    (cd / && exec setsid "$@" </dev/null >"$KUBE/logs/$name.log" 2>&1 9>&-) &
    pid=$!
    printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$KUBE/pids/$name"
}

is_running() {
    local pid started
    [[ -e $KUBE/pids/$1 ]] || return 1
    read -r pid started <"$KUBE/pids/$1"
    [[ -n $started && $(start_time "$pid") == "$started" ]]
}

threads() {
    local all=(/proc/"$1"/task/*)
    [[ -e ${all[0]} ]] && printf '%d' "${#all[@]}" || printf 0
}

# end NAME: kills a process that start has started, if it still runs, and waits for its end. There is no asking first:
# whoever takes the cluster down throws its state away as well, and a stopped process would not listen.
end() {
    local name=$1 pid i
    if is_running "$name"; then
        read -r pid _ <"$KUBE/pids/$name"
        kill -KILL "$pid" 2>/dev/null || true
        # Its other threads hold its sockets open after the process itself is a zombie.
        for ((i = 0; i < 200; i++)); do
            is_running "$name" || [[ $(threads "$pid") -gt 1 ]] || break
            sleep 0.05
        done
    fi
    rm -f "$KUBE/pids/$name"
}

# wait_for SECONDS NAME WHAT COMMAND...: until the command succeeds; fails at once when the process NAME has ended.
wait_for() {
    local deadline=$((SECONDS + $1)) name=$2 what=$3
    shift 3
    until "$@" >/dev/null 2>&1; do
        if ! is_running "$name" || ((SECONDS > deadline)); then
            printf '\n--- the end of %s\n' "$KUBE/logs/$name.log" >&2
            tail -n 20 "$KUBE/logs/$name.log" >&2
            is_running "$name" || fail "$name has ended: $what was waited for"
            fail "$name: $what did not come in time"
        fi
        sleep 0.1
    done
}
