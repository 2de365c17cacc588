#!/usr/bin/env bash
# Writes docs/INTEROP.md from real runs of every peer, some minute and a half of them.
# The peers are those that ./scripts/test.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=$PWD/target}"
: "${WAVRY_PEERS:=$CARGO_TARGET_DIR/peers}"
export CARGO_TARGET_DIR WAVRY_PEERS WAVRY_INTEROP_WRITE=1
if [ ! -e "$WAVRY_PEERS/node_modules/deno" ]; then
  echo "the peers are not installed: run ./scripts/test.sh" >&2
  exit 1
fi
cargo test --quiet --locked -p wavry-cli --test interop
