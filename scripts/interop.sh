#!/usr/bin/env bash
# Writes docs/INTEROP.md from real runs of every peer, which take half a minute.
# The peers are those that ./scripts/test.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=$PWD/target}"
: "${WAVRY_PEERS:=$CARGO_TARGET_DIR/peers}"
export CARGO_TARGET_DIR WAVRY_PEERS WAVRY_INTEROP_WRITE=1
for peer in node_modules/@deno venv/bin/python pywebtransport/bin/python; do
  if [ ! -e "$WAVRY_PEERS/$peer" ]; then
    echo "$WAVRY_PEERS/$peer is not there: ./scripts/test.sh installs the peers" >&2
    exit 1
  fi
done
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
if ! cargo test --quiet --locked -p wavry-cli --test interop >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
echo "docs/INTEROP.md is what every peer did"
