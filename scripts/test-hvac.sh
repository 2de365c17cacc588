#!/usr/bin/env bash
# Runs the integration tests of hvac, Vault's client for Python, against `wavry keyvault`.
#
#   ./scripts/test-hvac.sh              all classes that scripts/peers/hvac/selected.txt names
#   ./scripts/test-hvac.sh TestKvV2     these classes of them
#
# Wants python3 with venv, and a built `wavry` (WAVRY, else target/debug/wavry). Everything it fetches
# lies in target/peers.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${CARGO_TARGET_DIR:=$PWD/target}"
: "${WAVRY:=$CARGO_TARGET_DIR/debug/wavry}"
peers="$CARGO_TARGET_DIR/peers"
lists="$PWD/scripts/peers/hvac"
version=2.4.0
sources="$peers/hvac-$version"

mkdir -p "$peers"
if ! cmp -s "$lists/requirements.txt" "$peers/hvac-requirements.txt"; then
  rm -rf "$peers/hvac-venv"
  python3 -m venv "$peers/hvac-venv"
  "$peers/hvac-venv/bin/pip" install --quiet --disable-pip-version-check -r "$lists/requirements.txt"
  cp "$lists/requirements.txt" "$peers/hvac-requirements.txt"
fi
if [ ! -d "$sources" ]; then
  # The tests are in the source distribution alone. It is unpacked and not built.
  download="$(mktemp -d)"
  "$peers/hvac-venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
    --no-binary hvac -d "$download" "hvac==$version"
  tar -xzf "$download/hvac-$version.tar.gz" -C "$peers"
  rm -rf "$download"
fi

state="$(mktemp -d)"
trap 'rm -rf "$state"' EXIT
chmod 700 "$state"
mkdir "$state/bin"
ln -s "$lists/vault" "$state/bin/vault"
"$WAVRY" key generate --out "$state/audit.key" >/dev/null
export WAVRY WAVRY_HVAC_STATE="$state" WAVRY_HVAC_AUDIT_KEY="$state/audit.key" PATH="$state/bin:$PATH"
unset VAULT_ADDR VAULT_TOKEN VAULT_NAMESPACE VAULT_CACERT VAULT_CLIENT_CERT VAULT_CLIENT_KEY
status=0
"$peers/hvac-venv/bin/python" "$lists/run.py" "$sources" "$state/results.xml" "$@" || status=$?
if [ "$status" != 0 ] && [ -n "${WAVRY_HVAC_LOGS:-}" ]; then
  # What the servers said.
  for log in "$state"/store-*/log; do
    mkdir -p "$WAVRY_HVAC_LOGS"
    cp "$log" "$WAVRY_HVAC_LOGS/$(basename "$(dirname "$log")").log"
  done
fi
exit "$status"
