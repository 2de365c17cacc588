#!/usr/bin/env bash
# Fuzzes one decoder or state machine; fuzz/README.md says what there is.
#
#   ./scripts/fuzz.sh TARGET [SECONDS]     for a minute, or so many seconds; fails on a finding
#   ./scripts/fuzz.sh --keep TARGET        puts into fuzz/corpus what it takes to reach as much
#
# Wants Rust and a C++ compiler. What is found lies in target/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

: "${CARGO_TARGET_DIR:=$PWD/target}"
tools="$CARGO_TARGET_DIR/tools"
export CARGO_TARGET_DIR PATH="$tools/bin:$PATH"
# libFuzzer's instrumentation is not stable; a nightly toolchain would do as well.
export RUSTC_BOOTSTRAP=1

keep=
if [ "${1:-}" = --keep ]; then keep=1; shift; fi
target="${1:-}"
seconds="${2:-60}"
case "$target$seconds" in ''|-*|*[!a-z0-9_]*) usage ;; esac
[ -f "fuzz/fuzz_targets/$target.rs" ] || usage

if ! command -v cargo-fuzz >/dev/null 2>&1; then
  echo "building cargo-fuzz (once)"
  CARGO_TARGET_DIR="$tools/build" cargo install --quiet --root "$tools" --locked cargo-fuzz@0.13.2
  rm -rf "$tools/build"
fi

out="$CARGO_TARGET_DIR/fuzz"
found="$out/corpus/$target"
mkdir -p "$found" "$out/artifacts/$target" "fuzz/corpus/$target"
fuzz() { cargo fuzz run --target-dir "$out/build" "$target" "$@"; }

if [ -n "$keep" ]; then
  # Those with a name of their own stay; of the others as many as reach every branch.
  rm -f fuzz/corpus/"$target"/????????????????????????????????????????
  fuzz "fuzz/corpus/$target" "$found" -- -set_cover_merge=1 -use_counters=0
  exit
fi
# New inputs go to the first directory.
fuzz "$found" "fuzz/corpus/$target" -- -max_total_time="$seconds" -print_final_stats=1 \
  -artifact_prefix="$out/artifacts/$target/"
