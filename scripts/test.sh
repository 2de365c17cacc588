#!/usr/bin/env bash
# Everything that is checked, by one command, for people and for CI.
#
#   ./scripts/test.sh          installs what the tests need, checks and tests everything
#   ./scripts/test.sh --fast   leaves out browsers and the services that nobody here wrote
#
# Wants Debian 12 (or Ubuntu), Rust and a C compiler. Can be run again at any time. Everything it
# installs lies in target/, but for Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

fast=
for argument in "$@"; do
  case "$argument" in
    --fast) fast=1 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

: "${CARGO_TARGET_DIR:=$PWD/target}"
peers="$CARGO_TARGET_DIR/peers"
tools="$CARGO_TARGET_DIR/tools"
export CARGO_TARGET_DIR PATH="$tools/bin:$PATH" CARGO_TERM_PROGRESS_WHEN=never

heading() { printf '\n== [%4d s] %s\n' "$SECONDS" "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
have_any() { local name; for name in "$@"; do have "$name" && return; done; return 1; }

# Runs a command that has nothing to say when it succeeds.
quietly() {
  local log
  log="$(mktemp)"
  if "$@" >"$log" 2>&1; then rm -f "$log"; else
    echo "failed: $*" >&2
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

install_packages() {
  local wanted=()
  have python3 || wanted+=(python3)
  have shellcheck || wanted+=(shellcheck)
  have curl || wanted+=(curl)
  have openssl || wanted+=(openssl)
  have strace || wanted+=(strace)
  # With it the package is checked that has an ACME authority in it.
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || wanted+=(debian-archive-keyring)
  # The KeyVault's tests start servers of their own.
  [ -d /usr/lib/postgresql ] || have postgres || wanted+=(postgresql)
  [ -n "$(type -P kill)" ] || wanted+=(procps)
  if [ -z "$fast" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || wanted+=(python3-venv)
    have socat || wanted+=(socat)
    [ -x /usr/sbin/rsyslogd ] || wanted+=(rsyslog)
    dpkg -s rsyslog-gnutls >/dev/null 2>&1 || wanted+=(rsyslog-gnutls)
    have node || wanted+=(nodejs)
    have npm || wanted+=(npm)
    have_any chromium google-chrome || wanted+=(chromium)
    have_any firefox-esr firefox || wanted+=(firefox-esr)
    # A DNS server that takes updates, and what asks and changes it.
    [ -x /usr/sbin/named ] || wanted+=(bind9)
    { have dig && have nsupdate; } || wanted+=(bind9-dnsutils)
    # A test has a network of its own, and captures what goes over it.
    have_any ip /usr/sbin/ip || wanted+=(iproute2)
    { have dumpcap && have tshark; } || wanted+=(tshark)
  fi
  if [ ${#wanted[@]} = 0 ]; then
    echo "all there"
    return
  fi
  echo "installing ${wanted[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly as_root apt-get -q -o DPkg::Lock::Timeout=300 update
  quietly as_root apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${wanted[@]}"
}

# Debian's Pebble, an ACME authority. Debian 12's does not say when a certificate should be renewed (ARI);
# that of unstable does, and needs nothing but libc. Lists and package stay in target/.
install_pebble() {
  local place="$peers/pebble" lists="$peers/pebble-lists" options
  if "$place/usr/bin/pebble" -version >/dev/null 2>&1; then return; fi
  echo "installing pebble"
  rm -rf "$place" "$lists"
  mkdir -p "$place" "$lists/lists/partial" "$lists/cache/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main" \
    >"$lists/sid.list"
  options=(-q -o "Dir::Etc::SourceList=$lists/sid.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists/cache" -o "APT::Sandbox::User=$(id -un)")
  quietly apt-get "${options[@]}" update
  (cd "$lists" && quietly apt-get "${options[@]}" download pebble)
  dpkg-deb -x "$lists"/pebble_*.deb "$place"
  rm -rf "$lists"
}

# Debian's or Ubuntu's Prometheus, promtool and Alertmanager: unpacked, and no service of this machine.
install_prometheus() {
  local place="$peers/prometheus"
  promtool="$place/usr/bin/promtool"
  # Alertmanager reads its templates from /usr/share; this one is to read them from where it is started.
  local there=/usr/share/prometheus/alertmanager here=usr/share/prometheus//alertmanager
  if "$promtool" --version >/dev/null 2>&1 && grep -qF "$here" "$place/usr/bin/prometheus-alertmanager" 2>/dev/null; then return; fi
  echo "installing Prometheus and Alertmanager"
  rm -rf "$place"
  mkdir -p "$place"
  (cd "$place" && { apt-get -q download prometheus prometheus-alertmanager >/dev/null 2>&1 ||
    { quietly as_root apt-get -q -o DPkg::Lock::Timeout=300 update && quietly apt-get -q download prometheus prometheus-alertmanager; }; })
  dpkg-deb -x "$place"/prometheus_*.deb "$place"
  dpkg-deb -x "$place"/prometheus-alertmanager_*.deb "$place"
  rm -f "$place"/*.deb
  sed -i "s|$there|$here|g" "$place/usr/bin/prometheus-alertmanager"
}

check_rules() {
  "$promtool" check rules deploy/prometheus/*.rules.yml
  "$promtool" test rules deploy/prometheus/tests/*.test.yml
}

# A Python that is newer than Debian 12's.
newer_python() {
  local candidate
  for candidate in python3.14 python3.13 python3.12 "${HOME:-/root}"/.pyenv/versions/3.1[2-9]*/bin/python; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Installs again only what a changed list asks for.
install_peers() {
  mkdir -p "$peers"
  if ! cmp -s scripts/peers/package-lock.json "$peers/installed-lock.json"; then
    echo "installing puppeteer-core, Deno"
    cp scripts/peers/package.json scripts/peers/package-lock.json "$peers/"
    (cd "$peers" && PUPPETEER_SKIP_DOWNLOAD=1 quietly npm ci --no-audit --no-fund)
    cp scripts/peers/package-lock.json "$peers/installed-lock.json"
  fi
  if ! cmp -s scripts/peers/requirements.txt "$peers/requirements.txt"; then
    echo "installing aioquic"
    rm -rf "$peers/venv"
    python3 -m venv "$peers/venv"
    quietly "$peers/venv/bin/pip" install --quiet --disable-pip-version-check -r scripts/peers/requirements.txt
    cp scripts/peers/requirements.txt "$peers/"
  fi
  if ! cmp -s scripts/peers/pywebtransport.txt "$peers/pywebtransport.txt"; then
    local python
    if python="$(newer_python)"; then
      echo "installing pywebtransport"
      rm -rf "$peers/pywebtransport"
      "$python" -m venv "$peers/pywebtransport"
      quietly "$peers/pywebtransport/bin/python" -m pip install --quiet --disable-pip-version-check -r scripts/peers/pywebtransport.txt
      cp scripts/peers/pywebtransport.txt "$peers/"
    else
      echo "pywebtransport is left out: it wants Python 3.12"
    fi
  fi
  if ! cmp -s scripts/peers/moto.txt "$peers/moto.txt"; then
    echo "installing moto"
    rm -rf "$peers/moto"
    python3 -m venv "$peers/moto"
    quietly "$peers/moto/bin/pip" install --quiet --disable-pip-version-check -r scripts/peers/moto.txt
    cp scripts/peers/moto.txt "$peers/"
  fi
  install_pebble
  install_prometheus
  export WAVRY_PEERS="$peers"
}

install_tools() {
  for component in clippy rustfmt; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || quietly rustup component add "$component"
  done
  if ! have cargo-deny; then
    echo "building cargo-deny (some five minutes, once)"
    CARGO_TARGET_DIR="$tools/build" quietly cargo install --quiet --root "$tools" --locked --no-default-features cargo-deny@0.20.2
    rm -rf "$tools/build"
  fi
}

check_dependencies() {
  cargo deny --locked check --hide-inclusion-graph --allow duplicate bans licenses sources
  cargo deny --locked --manifest-path proto/Cargo.toml --exclude-dev --config proto/deny.toml check --hide-inclusion-graph bans
  if quietly timeout 120 cargo deny --locked fetch db 2>/dev/null; then
    cargo deny --locked check --hide-inclusion-graph --disable-fetch advisories
  else
    echo "advisories were not checked: their database cannot be fetched from here"
  fi
}

check_fuzz_targets() {
  # Only their types: libFuzzer itself would need a C++ compiler.
  CUSTOM_LIBFUZZER_PATH=/nowhere/libfuzzer.a cargo clippy --quiet --locked --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings
}

# Without cargo-nextest the tests run in cargo's own runner, whose summaries are added up.
run_tests_with_cargo() {
  local exclude=() log
  [ -z "$fast" ] || exclude=(--lib --bins)
  log="$(mktemp)"
  trap 'rm -f "$log"' RETURN
  local status=0
  cargo test --quiet --workspace --locked --no-fail-fast "${exclude[@]}" -- --test-threads=2 2>&1 | tee "$log" || status=$?
  awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
       END { printf "\nSummary %d tests run: %d passed, %d failed, %d skipped\n", passed + failed, passed, failed, ignored }' "$log"
  return "$status"
}

heading "Debian packages"
install_packages
heading "tools"
install_tools
if [ -z "$fast" ]; then
  heading "peers: puppeteer, Deno, aioquic, pywebtransport, moto, Pebble"
  install_peers
fi

heading "format"
cargo fmt --all --check
heading "scripts"
shellcheck -x scripts/*.sh scripts/peers/*.sh .ci/run
heading "links in the documents"
python3 scripts/check_links.py
if [ -z "$fast" ]; then
  heading "alarms"
  check_rules
fi
heading "dependencies: licences, sources, layers"
check_dependencies
heading "clippy"
cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
heading "fuzz targets compile"
check_fuzz_targets
heading "rustdoc"
# The prose of a lib.rs names its private rooms as well.
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --quiet --workspace --no-deps --locked
heading "build"
cargo test --quiet --no-run --workspace --locked
heading "tests in the documentation"
cargo test --quiet --doc --workspace --locked
if [ -z "$fast" ]; then
  heading "hvac's own tests against the KeyVault"
  ./scripts/test-hvac.sh
  heading "schemathesis against the KeyVault"
  ./scripts/test-openapi.sh 10
  heading "schemathesis against the master"
  ./scripts/test-openapi-master.sh 25
fi
heading "tests"
if ! cargo nextest --version >/dev/null 2>&1; then
  run_tests_with_cargo
elif [ -n "$fast" ]; then
  cargo nextest run --workspace --locked -E 'not (binary(acme) | binary(acme_dns) | binary(alerts) | binary(renewal) | binary(browser) | binary(capture) | binary(kms) | binary(peers) | binary(interop))'
else
  cargo nextest run --workspace --locked
fi
