#!/usr/bin/env bash
# A Slurm of one node with two GPUs, on this machine's loopback, for tests.
#
#   cluster.sh install        Debian's packages, where Slurm is missing
#   cluster.sh start FOLDER   the daemons; SLURM_CONF=FOLDER/slurm.conf makes Slurm's commands use them
#   cluster.sh stop FOLDER    cancels all jobs and ends the daemons
#
# Everything that the daemons need and write is in FOLDER, and their ports are free ones, so that they meet no other
# Slurm. The node claims more cores and memory than the machine may have; its GPUs are devices of every machine.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

install() {
    local commands=(munged slurmctld slurmd sbatch scontrol)
    if ((EUID != 0)); then
        echo "error: the tests with Slurm start its daemons and need root; you are $(id -un)" >&2
        exit 1
    fi
    if [[ "$(command -v "${commands[@]}" | wc -l)" == "${#commands[@]}" ]]; then
        return
    fi
    if ! command -v apt-get >/dev/null; then
        echo "error: the tests with Slurm need ${commands[*]}, and there is no apt-get to install them with" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install --no-install-recommends slurm-wlm munge >/dev/null
}

is_running() {  # the daemon whose pid is in the file; a zombie is none
    [[ -s "$folder/$1.pid" ]] && ! has_ended "$(<"$folder/$1.pid")"
}

has_ended() {
    ! grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$1/status"
}

wait_for() {  # wait_for SECONDS COMMAND...: until the command succeeds
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

free_ports() {
    python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in sockets))'
}

configure() {
    local host controller_port node_port
    host="$(hostname -s)"
    read -r controller_port node_port < <(free_ports)
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    mkdir -p "$folder/state" "$folder/spool"
    cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=5
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=node NodeHostname=$host NodeAddr=127.0.0.1 CPUs=32 RealMemory=128000 Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=node Default=YES MaxTime=240 State=UP
END
    cat >"$folder/gres.conf" <<END
NodeName=node Name=gpu File=/dev/null
NodeName=node Name=gpu File=/dev/zero
END
}

start() {
    configure
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" --num-threads=2 2>"$folder/munged.err"
    slurmctld -c -f "$SLURM_CONF"
    slurmd -N node -f "$SLURM_CONF"
    if ! wait_for 60 node_is_idle; then
        echo "error: the test's Slurm did not start; its logs are in $folder" >&2
        tail -n 20 "$folder"/*.log >&2
        stop
        exit 1
    fi
}

node_is_idle() {
    [[ "$(sinfo --noheader --format=%T 2>/dev/null)" == idle ]]
}

stop() {
    local daemon
    if is_running slurmctld; then
        scancel --quiet --user=root 2>/dev/null || true
        wait_for 15 no_job_runs || true
    fi
    for daemon in slurmd slurmctld munged; do
        if is_running "$daemon"; then
            local pid
            pid="$(<"$folder/$daemon.pid")"
            kill "$pid"
            wait_for 20 has_ended "$pid" || kill -KILL "$pid"
        fi
    done
}

no_job_runs() {
    [[ -z "$(squeue --noheader 2>/dev/null)" ]]
}

action="$1"
if [[ "$action" != install ]]; then
    folder="$(realpath "$2")"
    export SLURM_CONF="$folder/slurm.conf"
fi
"$action"
