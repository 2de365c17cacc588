#!/usr/bin/env bash
# Sends schemathesis' requests, made from the KeyVault's own OpenAPI document, to a KeyVault: none may be
# answered with a status of 500 or above, or with what the document does not say.
#
#   ./scripts/test-openapi.sh           some 25 requests for each operation and phase
#   ./scripts/test-openapi.sh 200       so many
#
# Wants python3 with venv, curl and openssl, and a built `wavry` (WAVRY, else target/debug/wavry).
set -euo pipefail
cd "$(dirname "$0")/.."

examples="${1:-25}"
# shellcheck source-path=SCRIPTDIR source=peers/schemathesis.sh
. scripts/peers/schemathesis.sh

"$WAVRY" key generate --out "$state/audit.key" >/dev/null
openssl rand -hex 32 >"$state/keyvault.key"
chmod 600 "$state/keyvault.key"
printf '[keyvault]\nlisten = "127.0.0.1:0"\nseal = "key"\n[ops]\nlisten = "127.0.0.1:0"\n' >"$state/keyvault.toml"
WAVRY_TLS_KEY_FILE="$state/tls.key" WAVRY_AUDIT_KEY_FILE="$state/audit.key" \
  WAVRY_KEYVAULT_KEY_FILE="$state/keyvault.key" "$WAVRY" keyvault --config "$state/keyvault.toml" \
  --database "$state/keyvault.sqlite" --certificate "$state/tls.crt" --ready-file "$state/ready.json" \
  2>"$state/log" &
server=$!
wait_until_ready
ask() { curl --silent --show-error --fail --cacert "$state/tls.crt" "$@"; }
token="$(ask -X PUT "$url/v1/sys/init" | python3 -c 'import json, sys; print(json.load(sys.stdin)["root_token"])')"
ask -H "X-Vault-Token: $token" "$url/v1/sys/mounts/transit" -d '{"type":"transit"}'
for method in approle kubernetes cert bootstrap; do
  ask -H "X-Vault-Token: $token" "$url/v1/sys/auth/$method" -d "{\"type\":\"$method\"}"
done

# What the token's end would end, or the mounts', is left out: everything after it would be 403 or 404.
# It leaves a directory of its own where it runs.
cd "$state"
status=0
"$schemathesis" run "$url/openapi.json" --tls-verify "$state/tls.crt" \
  --header "X-Vault-Token: $token" --max-examples "$examples" \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
  --exclude-path /v1/auth/token/revoke-self --exclude-path "/v1/sys/auth/{path}" \
  --exclude-path "/v1/sys/mounts/{path}" --exclude-path /v1/sys/remount \
  --phases examples,coverage,fuzzing --seed 1 --no-color || status=$?
if [ "$status" != 0 ]; then tail -20 "$state/log" >&2; fi
exit "$status"
