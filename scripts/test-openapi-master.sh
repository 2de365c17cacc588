#!/usr/bin/env bash
# Sends schemathesis' requests, made from the master's own OpenAPI document, to a master: every answer must be
# one that the document has for the request, and none a status of 500 or above.
#
#   ./scripts/test-openapi-master.sh        some 25 requests for each operation and phase
#   ./scripts/test-openapi-master.sh 200    so many
#
# Wants python3 with venv and openssl, and a built `wavry` (WAVRY, else target/debug/wavry).
set -euo pipefail
cd "$(dirname "$0")/.."

examples="${1:-25}"
# shellcheck source-path=SCRIPTDIR source=peers/schemathesis.sh
. scripts/peers/schemathesis.sh

export WAVRY_TLS_KEY_FILE="$state/tls.key" WAVRY_AUDIT_KEY_FILE="$state/audit.key" WAVRY_MASTER_KEY_FILE="$state/master.key"
"$WAVRY" key generate --out "$WAVRY_AUDIT_KEY_FILE" >/dev/null
"$WAVRY" key generate --out "$WAVRY_MASTER_KEY_FILE" >/dev/null
"$WAVRY" token operator --subject tester --role admin --ttl 12h --out "$state/operator.token" >/dev/null
cat >"$state/master.toml" <<TOML
[master]
listen = "127.0.0.1:0"
database = "$state/master.sqlite"
certificate = "$state/tls.crt"
operator_rate = 100000
[[master.services]]
name = "echo"
[ops]
listen = "127.0.0.1:0"
TOML
"$WAVRY" master --config "$state/master.toml" --ready-file "$state/ready.json" 2>"$state/log" &
server=$!
wait_until_ready

# Schemathesis leaves a directory of its own where it runs. Names, hosts and keys have rules that the schemas do not
# have, so that what they allow may be refused, with a status that the document has.
cd "$state"
run() {
  "$schemathesis" run "$url/openapi.json" --tls-verify "$state/tls.crt" \
    --header "Authorization: Bearer $(cat "$state/operator.token")" --max-examples "$examples" \
    --phases examples,coverage,fuzzing --exclude-checks positive_data_acceptance --continue-on-failure \
    --seed 1 --no-color "$@"
}
status=0
run --exclude-path /v1/keys/rotate || status=$?
# Last: after a compromise no token holds any more, and every answer is 401.
run --include-path /v1/keys/rotate || status=$?
if [ "$status" != 0 ]; then tail -20 "$state/log" >&2; fi
exit "$status"
