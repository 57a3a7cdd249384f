#!/bin/bash
# Ends what up.sh started: daemons and what they run, namespaces, the bridge, the lines in /etc/hosts; removes $LAB.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd); . "$here/settings.sh"
[ -e "$LAB/up.env" ] || { echo "no lab is up in $LAB" >&2; exit 0; }
for daemon in slurmctld munged; do
    pid=$(cat "$LAB/run/$daemon.pid" 2>/dev/null) && grep -qaF "$LAB" "/proc/$pid/cmdline" 2>/dev/null && kill -9 "$pid"
done
for i in $(seq 0 $((NODES - 1))); do
    ip netns pids "$PREFIX$i" 2>/dev/null | xargs -r kill -9   # slurmd, slurmstepd and tasks: nobody else is in there
    ip link del "v-$PREFIX$i" 2>/dev/null; ip netns del "$PREFIX$i" 2>/dev/null
done
ip link del "$BRIDGE" 2>/dev/null
if grep -qF "$HOSTS_MARK" /etc/hosts; then       # written in place: in a container /etc/hosts may be a mount
    flock "$HOSTS_LOCK" sh -c 'grep -vF "$1" /etc/hosts > "$2/hosts"; cat "$2/hosts" > /etc/hosts' - "$HOSTS_MARK" "$LAB"
fi
rm -rf "$LAB"
