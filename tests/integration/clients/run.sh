#!/usr/bin/env bash
# Clients of other makers against `octavo serve` with SmolLM2: each in an environment of its own, made here and removed
# at the end. Prints a line of passed and failed for each client; fails when one of them failed. A client that cannot be
# installed (no node, no npm, no registry) is skipped by name.
#
#   tests/integration/clients/run.sh [PYTHON]      PYTHON has octavo installed (default: python3)
#   OCTAVO_CLIENTS_DIR=DIR             keep the environments there, for the next run
set -u

python=$(command -v "${1:-python3}") || { echo "${1:-python3}: there is no such program" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
environments=${OCTAVO_CLIENTS_DIR:-$scratch}
key=sk-clients-$$
server=
num_failed=0
export PYTHONSAFEPATH=1

cleanup() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

skip() { echo "$1: SKIPPED: $2"; }

make_python() {
    [ -f "$environments/python/ready" ] && return
    "$python" -m venv "$environments/python" &&
        timeout 300 "$environments/python/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
            --requirement "$here/requirements.txt" && touch "$environments/python/ready"
}

make_node() {
    [ -f "$environments/node/ready" ] && return
    mkdir -p "$environments/node" && cp "$here/package.json" "$environments/node/" &&
        (cd "$environments/node" &&
            timeout 300 npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error &&
            touch ready)
}

# The server under test; sets `server` and `url`.
start_server() {
    OCTAVO_API_KEY=$key "$python" -m octavo serve smollm2-135m --port 0 --device cpu 2>"$scratch/server.log" &
    server=$!
    for _ in $(seq 600); do
        url=$(sed -n 's|^Serving .* at \(http://[0-9.]*:[0-9]*\).*|\1|p' "$scratch/server.log")
        [ -z "$url" ] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$scratch/server.log" >&2
    return 1
}

# It has to end by itself, and well, when it is asked to.
stop_server() {
    kill -TERM "$server"
    wait "$server"
    local code=$?
    server=
    [ $code -eq 0 ] || { echo "server: ended with $code"; cat "$scratch/server.log"; return 1; }
}

run() { "$@" "$url" "$key" || num_failed=$((num_failed + 1)); }

if ! "$python" -c "from octavo import hub; hub.resolve('smollm2-135m', progress=False)" 2>"$scratch/hub.log"; then
    skip clients "the model could not be fetched: $(tail -n 1 "$scratch/hub.log")"
    exit 0
fi

make_python >"$scratch/python.log" 2>&1 &
making_python=$!
has_node=
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    skip openai-node "there is no node or no npm"
elif make_node >"$scratch/node.log" 2>&1; then
    has_node=1
else
    skip openai-node "npm could not install it: $(head -n 1 "$scratch/node.log")"
fi
has_python=1
if ! wait $making_python; then
    has_python=
    for name in langchain-openai openapi; do
        skip $name "pip could not install it: $(tail -n 1 "$scratch/python.log")"
    done
fi
[ -n "$has_node$has_python" ] || exit 0

start_server || exit 1
if [ -n "$has_node" ]; then
    cp "$here/openai_node.mjs" "$environments/node/"
    run node "$environments/node/openai_node.mjs"
fi
if [ -n "$has_python" ]; then
    run "$environments/python/bin/python" "$here/langchain_openai_chat.py"
    run "$environments/python/bin/python" "$here/openapi_schemas.py"
fi
stop_server || num_failed=$((num_failed + 1))
[ $num_failed -eq 0 ]
