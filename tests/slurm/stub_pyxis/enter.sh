#!/bin/bash
# enter.sh MOUNTS WORKDIR COMMAND…: in a root that has the system's programs, IMAGE_VENV as /opt/venv,
# the Python that it is of (IMAGE_PYTHON), the mounts, and nothing else.
set -euo pipefail
if [ -z "${STUB_ROOT:-}" ]; then
    STUB_ROOT=$(mktemp -d) exec unshare --mount "$0" "$@"
fi
mount -t tmpfs none "$STUB_ROOT"
bind() { mkdir -p "$STUB_ROOT$2"; mount --rbind "$1" "$STUB_ROOT$2"; [ "${3:-}" != ro ] || mount -o remount,bind,ro "$STUB_ROOT$2"; }
for folder in usr etc proc sys dev; do bind "/$folder" "/$folder"; done
for link in bin sbin lib lib64; do ln -s "usr/$link" "$STUB_ROOT/$link"; done
mkdir -m 1777 "$STUB_ROOT/tmp"
bind "$IMAGE_VENV" /opt/venv
[ -e "$STUB_ROOT$IMAGE_PYTHON" ] || bind "$IMAGE_PYTHON" "$IMAGE_PYTHON"
IFS=, read -ra mounts <<< "$1"
for mount in "${mounts[@]}"; do
    IFS=: read -r outside inside flags <<< "$mount"
    bind "$outside" "$inside" "$flags"
done
# What an image sets wins over the host's, as in pyxis.
export PATH=/opt/venv/bin:/usr/bin:/bin PYTHONPATH=/of/the/image STUB_INSIDE=yes
workdir=$2
shift 2
exec /usr/sbin/chroot "$STUB_ROOT" /bin/bash -c 'cd "$0" && exec "$@"' "$workdir" "$@"
