# What the scripts share that send schemathesis' requests, made from an OpenAPI document, to a server: they read
# this file. It installs schemathesis, and makes the directory "$state" with a certificate for localhost in it,
# which goes when the script ends, together with the server whose process id is "$server".
# shellcheck shell=bash disable=SC2034  # who reads this uses them

: "${CARGO_TARGET_DIR:=$PWD/target}"
: "${WAVRY:=$CARGO_TARGET_DIR/debug/wavry}"
peers="$CARGO_TARGET_DIR/peers"
list="$PWD/scripts/peers/schemathesis.txt"

mkdir -p "$peers"
if ! cmp -s "$list" "$peers/schemathesis.txt"; then
  rm -rf "$peers/schemathesis"
  python3 -m venv "$peers/schemathesis"
  "$peers/schemathesis/bin/pip" install --quiet --disable-pip-version-check -r "$list"
  cp "$list" "$peers/schemathesis.txt"
fi
schemathesis="$peers/schemathesis/bin/schemathesis"

state="$(mktemp -d)"
chmod 700 "$state"
server=
# shellcheck disable=SC2317  # the trap calls it
stop() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  rm -rf "$state"
}
trap stop EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost -keyout "$state/tls.key" -out "$state/tls.crt" 2>/dev/null
chmod 600 "$state/tls.key"

# Waits for the server, which writes "$state/ready.json" and logs to "$state/log", and says where it is.
wait_until_ready() {
  for _ in $(seq 300); do
    [ -s "$state/ready.json" ] && break
    kill -0 "$server" || { cat "$state/log" >&2; exit 1; }
    sleep 0.1
  done
  port="$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"].rpartition(":")[2])' "$state/ready.json")"
  url="https://localhost:$port"
}
