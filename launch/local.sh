#!/usr/bin/env bash
# Trains with several processes on this host:
#   launch/local.sh 2 --config configs/clip_emoji.py --workdir runs/two
# On CPU each process has JAX_LOCAL_DEVICES simulated devices (default 1). If a process fails, the
# others are stopped, and the script exits with the code of the first one that failed. Preempted
# processes (75) are restarted. On SIGTERM or Ctrl-C the run is saved and the script exits with 75.
set -euo pipefail

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  echo "usage: $0 PROCESSES [arguments of python -m vit_jax.train]" >&2
  exit 2
fi
processes=$1
shift

export JAX_NUM_PROCESSES=$processes
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${JAX_LOCAL_DEVICES:-1}"

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# SIGTERM and Ctrl-C are forwarded to all processes; they save the same step.
pids=()
stopped=0
trap 'stopped=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

# Starts all processes, waits for them and sets `code`.
run() {
  local i pid status running left
  JAX_COORDINATOR_ADDRESS=127.0.0.1:$(free_port)
  export JAX_COORDINATOR_ADDRESS
  pids=()
  for ((i = 0; i < processes; i++)); do
    JAX_PROCESS_ID=$i python3 -m vit_jax.train "$@" &
    pids+=($!)
  done
  code=0
  running=("${pids[@]}")
  while ((${#running[@]})); do
    # `wait -n` loses the status of one of two processes that end together. A trapped signal ends
    # the `wait` for the clock.
    sleep 0.5 &
    wait "$!" || true
    left=()
    for pid in "${running[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      if ((status != 0 && code == 0)); then
        code=$status
        if ((status != 75)); then
          kill -TERM "${pids[@]}" 2>/dev/null || true
          # A process that waits for a dead one in a collective ignores SIGTERM.
          (sleep 20 && kill -KILL "${pids[@]}") >/dev/null 2>&1 &
        fi
      fi
    done
    running=("${left[@]}")
  done
}

while run "$@" && ((code == 75 && stopped == 0)); do
  echo "preempted: restarting" >&2
done
exit "$code"
