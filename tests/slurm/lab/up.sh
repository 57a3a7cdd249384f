#!/bin/bash
# Brings up a real SLURM of NODES nodes on this machine, as root: munge, slurmctld, one slurmd a node, each in a network
# namespace with an address and a hostname of its own. 1-3 seconds. settings.sh says what can be set; README.md how to use it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); . "$here/settings.sh"
for tool in munged slurmctld slurmd sinfo ip nsenter flock; do command -v $tool >/dev/null || { echo "no $tool" >&2; exit 1; }; done
[ -e "$LAB/up.env" ] && { echo "already up: $LAB (NUMBER=$NUMBER ./down.sh)" >&2; exit 1; }
mkdir -p "$LAB"/{munge,state,spool,run,log}
for i in $(seq 0 $((NODES - 1))); do mkdir -p "$LAB/spool/$PREFIX$i"; done
for name in PREFIX NODES NET BRIDGE NICE; do echo "$name=${!name}"; done > "$LAB/up.env"           # what down.sh must undo
trap 'echo "failed; undoing" >&2; trap - ERR; cat "$LAB"/log/* >&2; "$here/down.sh"; exit 1' ERR
trap 'trap - ERR; "$here/down.sh"; exit 130' INT TERM HUP

# Network: a bridge, and a namespace a node with a veth into it.
ip link add "$BRIDGE" type bridge; ip addr add "$NET.1/24" dev "$BRIDGE"; ip link set "$BRIDGE" up
hosts=""
for i in $(seq 0 $((NODES - 1))); do
    ip netns add "$PREFIX$i"
    ip link add "v-$PREFIX$i" type veth peer name eth0 netns "$PREFIX$i"
    ip link set "v-$PREFIX$i" master "$BRIDGE" up
    ip -n "$PREFIX$i" link set lo up
    ip -n "$PREFIX$i" addr add "$(addr "$i")/24" dev eth0
    ip -n "$PREFIX$i" link set eth0 up
    ip -n "$PREFIX$i" route add default via "$NET.1"
    hosts+="$(addr "$i") $PREFIX$i $HOSTS_MARK"$'\n'
done
if [ "$NAMES" = yes ]; then flock "$HOSTS_LOCK" sh -c 'printf %s "$1" >> /etc/hosts' - "$hosts"; fi

# slurm.conf and gres.conf. A fake GPU must be a character device: with a plain file CUDA_VISIBLE_DEVICES stays unset.
nodes=""
for i in $(seq 0 $((NODES - 1))); do nodes+="NodeName=$PREFIX$i NodeAddr=$(addr "$i")"$'\n'; done
text=$(< "$here/slurm.conf.template")
for key in NUMBER LAB CTLD_PORT SLURMD_PORT SLURMD_TIMEOUT CPUS GPUS GRACE; do text=${text//@$key@/${!key}}; done
line=""; [ "$USER_SIGNAL" = yes ] && line=SlurmctldParameters=preempt_send_user_signal
text=${text//@USER_SIGNAL_LINE@/$line}; text=${text//@CONTROLLER@/$(hostname -s)}; text=${text//@CONTROLLER_ADDR@/$NET.1}
printf '%s\n' "${text//@NODES@/$nodes}" > "$LAB/slurm.conf"
echo "NodeName=${PREFIX}[0-$((NODES - 1))] Name=gpu Type=a800 File=/dev/tty[0-$((GPUS - 1))]" > "$LAB/gres.conf"

# Daemons. Start them under the names slurmctld and slurmd: under any other GRES is silently dropped.
dd if=/dev/urandom of="$LAB/munge/key" bs=1024 count=1 2>/dev/null; chmod 400 "$LAB/munge/key"
munged --force --key-file="$LAB/munge/key" --socket="$LAB/munge/socket" --pid-file="$LAB/run/munged.pid" \
    --log-file="$LAB/log/munged.log" --seed-file="$LAB/munge/seed"
slurmctld -c -f "$SLURM_CONF"
for i in $(seq 0 $((NODES - 1))); do "$here/node.sh" "$PREFIX$i" start; done

idle() { sinfo -h -N -p low -t idle -o %N 2>/dev/null | wc -l; }
for _ in $(seq 120); do [ "$(idle)" = "$NODES" ] && break; sleep 0.5; done
[ "$(idle)" = "$NODES" ] || { echo "not all nodes are idle" >&2; false; }
echo "export SLURM_CONF=$SLURM_CONF"
