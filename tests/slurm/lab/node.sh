#!/bin/bash
# One node of a lab: NUMBER=0 ./node.sh m0n3 start [HIDE]|stop|kill|cut|heal
#   start: its slurmd; HIDE: a folder that this node is not to see (a share that is not mounted there).
#   stop: its slurmd, gently.   kill: as when a machine loses power: kill -9 of all that runs in its namespace, link down.
#   cut, heal: its network goes and comes back.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); . "$here/settings.sh"
[ -e "$LAB/up.env" ] || { echo "no lab is up in $LAB" >&2; exit 1; }
node=$1 pidfile=$LAB/run/slurmd-$1.pid
case $2 in
start)
    ip link set "v-$node" up
    # Not `ip netns exec`: it mounts a new /sys, in which slurmd finds no cgroup file system and ends.
    hide=""; [ -n "${3:-}" ] && hide="mount -t tmpfs none '$3';"
    nsenter --net="/run/netns/$node" unshare --uts --mount bash -c "hostname $node; $hide exec nice -n $NICE slurmd -f '$SLURM_CONF' -N $node" ;;
stop) kill "$(cat "$pidfile")"; for _ in $(seq 100); do [ -e "$pidfile" ] || break; sleep 0.1; done ;;
kill)
    ip link set "v-$node" down
    ip netns pids "$node" | xargs -r kill -9 ;;         # a namespace of our own: nobody else's processes are in it
cut)  ip link set "v-$node" down ;;
heal) ip link set "v-$node" up ;;
*) echo "usage: $0 NODE start [HIDE]|stop|kill|cut|heal" >&2; exit 2 ;;
esac
