#!/usr/bin/env bash
# A container engine and the base images, where none can be pulled: for root on a Debian machine that is yours to change.
#
#   engine.sh start    install docker.io, docker-compose and debootstrap; start dockerd; make the base images; build ours
#   engine.sh stop     stop the dockerd that was started here
#
# The base images come from debootstrap and carry the names that Dockerfile and compose.yaml use. This machine's CA
# bundle and pip settings go into them, and nowhere else.
set -euo pipefail
cd "$(dirname "$0")/../../.."

STATE=${SPLITMESH_ENGINE_STATE:-/var/lib/splitmesh-engine}
PYTHON_IMAGE=python:3.11-slim-bookworm
REDIS_IMAGE=redis:7-bookworm

say() { echo "engine: $*" >&2; }

skip() {
    say "SKIPPED: $*"
    exit 77
}

installed() {
    [ "$(id -u)" = 0 ] || skip "needs root"
    command -v apt-get >/dev/null || skip "needs a Debian machine"
    local missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v docker-compose >/dev/null || missing+=(docker-compose)
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]} ..."
    apt-get -o DPkg::Lock::Timeout=300 update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends "${missing[@]}" iptables >/dev/null
}

running() { docker info >/dev/null 2>&1; }

started() {
    running && return
    mkdir -p "$STATE"
    nohup dockerd >"$STATE/dockerd.log" 2>&1 &
    echo $! >"$STATE/dockerd.pid"
    for _ in $(seq 60); do
        running && return
        sleep 0.5
    done
    tail -3 "$STATE/dockerd.log" >&2
    skip "dockerd does not start here"
}

has() { docker image inspect "$1" >/dev/null 2>&1; }

# root FOLDER PACKAGES: a small Debian of this machine's release, with its CA bundle
root() {
    say "making a Debian with $2 ..."
    debootstrap --variant=minbase --include="ca-certificates,$2" bookworm "$1" >"$STATE/debootstrap.log" 2>&1 ||
        { tail -3 "$STATE/debootstrap.log" >&2; skip "debootstrap does not work here"; }
    cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/archives/*.deb
}

imported() { # FOLDER IMAGE OPTIONS...
    tar -C "$1" -c . | docker import "${@:3}" - "$2" >/dev/null
    rm -rf "$1"
}

based() {
    local folder
    if ! has "$PYTHON_IMAGE"; then
        folder=$(mktemp -d "$STATE/root.XXXX")
        root "$folder" python3,python3-venv,python3-pip
        ln -s /usr/bin/python3 "$folder/usr/local/bin/python"
        { echo "[global]"; echo "cert = /etc/ssl/certs/ca-certificates.crt"; pip_links; } >"$folder/etc/pip.conf"
        imported "$folder" "$PYTHON_IMAGE" --change 'CMD ["python"]'
    fi
    if ! has "$REDIS_IMAGE"; then
        folder=$(mktemp -d "$STATE/root.XXXX")
        root "$folder" redis-server
        install -d -o "$(awk -F: '$1 == "redis" {print $3}' "$folder/etc/passwd")" "$folder/data"
        imported "$folder" "$REDIS_IMAGE" --change 'WORKDIR /data'
    fi
}

# Folders in which pip looks for wheels here: served to the builds on loopback.
pip_links() {
    [ -n "${PIP_FIND_LINKS:-}" ] && echo "find-links = http://127.0.0.1:$WHEELS_PORT/" && echo "trusted-host = 127.0.0.1"
    true
}

WHEELS_PORT=18765
built() {
    local server=""
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        python3 -m http.server --bind 127.0.0.1 --directory "$PIP_FIND_LINKS" "$WHEELS_PORT" >/dev/null 2>&1 &
        server=$!
    fi
    for target in control worker load; do
        say "building splitmesh-$target ..."
        docker build --network host --target "$target" -t "splitmesh-$target" . >"$STATE/build-$target.log" 2>&1 ||
            { tail -20 "$STATE/build-$target.log" >&2; [ -n "$server" ] && kill "$server"; exit 1; }
    done
    [ -z "$server" ] || kill "$server"
    docker image ls --format '{{.Repository}} {{.Size}}' | grep '^splitmesh-' >&2
}

case ${1:-} in
start)
    installed
    mkdir -p "$STATE"
    started
    based
    built
    ;;
stop)
    [ -f "$STATE/dockerd.pid" ] || exit 0
    kill "$(cat "$STATE/dockerd.pid")" 2>/dev/null || true
    rm -f "$STATE/dockerd.pid"
    ;;
*)
    sed -n '2,8p' "$0"
    exit 2
    ;;
esac
