#!/bin/sh
# Builds or completes the virtual environment VENV from setup.py and constraints.txt, and checks it.
# Usage: [PYTHON=python3.11] tools/setup_environment.sh VENV     (what `make setup` runs; fit to be run again at any time)
set -eu
venv=$1
cd "$(dirname "$0")/.."

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

has_pip() {
    "$1" -m pip --version >/dev/null 2>&1
}

# Whether VENV is an environment that can be completed: works, and is of the Python that was asked for.
is_usable() {
    is_supported "$venv/bin/python" && has_pip "$venv/bin/python" &&
        { [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -V 2>&1)" = "$("$venv/bin/python" -V)" ]; }
}

# The Python to build on: $PYTHON where it is given, else the first on PATH that fits.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        found=$("$PYTHON" -V 2>/dev/null) || found="no Python"
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is $found; mres needs Python 3.10, 3.11 or 3.12"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python3.10; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    found=$(python3 -V 2>/dev/null) || found="no python3"
    fail "mres needs Python 3.10, 3.11 or 3.12, and PATH has $found; install one (Debian, Ubuntu: apt-get install" \
        "python3 python3-venv) or name one: make PYTHON=/path/to/python3.11 ..."
}

# Debian and Ubuntu leave the venv module without ensurepip until python3.X-venv is installed.
create_environment() {
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    "$1" -m venv --clear "$venv" >/dev/null 2>&1 && return
    if has_pip "$1" && "$1" -m venv --clear --without-pip "$venv" >/dev/null 2>&1; then
        packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        # The second one gives the environment its bin/pip, which the first puts elsewhere.
        "$1" -m pip install --quiet --target "$packages" --constraint constraints.txt pip &&
            "$venv/bin/python" -m pip install --quiet --force-reinstall --constraint constraints.txt pip && return
    fi
    rm -rf "$venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $package, which this Python lacks"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" &&
            "$1" -m venv --clear "$venv" && return
        rm -rf "$venv"
    fi
    fail "'$1 -m venv' cannot make an environment with pip; install $package" \
        "(Debian, Ubuntu: sudo apt-get install $package), then run the same command again"
}

if is_usable; then
    echo "completing $venv"
else
    python=$(choose_python)
    echo "setting up $venv with $("$python" -V): 7 GB, some minutes, once"
    create_environment "$python"
fi

trap '[ $? = 0 ] || echo "error: the set-up of $venv broke off (see above); the same command takes it up again" >&2' EXIT
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install --constraint constraints.txt pip setuptools
# Built with the setuptools just installed: pip would otherwise fetch an unpinned one to build with.
$pip install --constraint constraints.txt --no-build-isolation --editable '.[all]'
$pip check
"$venv/bin/python" tools/check_environment.py constraints.txt
