#!/usr/bin/env bash
# Installs the Debian packages that tests use as peers, where this is root in CI; elsewhere prints the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=()
while read -r package; do
  if [[ "$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null || true)" != "ii "* ]]; then
    missing+=("$package")
  fi
done < tests/peers.txt
if ((${#missing[@]} == 0)); then
  exit 0
fi

if [[ "${CI:-}" != "true" || "$(id -u)" != "0" ]]; then
  echo "Some tests need these programs: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 0
fi

# The packages' own services must not start: the tests start what they need, on loopback and on ports of their own.
policy=/usr/sbin/policy-rc.d
if [[ ! -e "$policy" ]]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 0755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
for attempt in 1 2 3; do
  if apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null; then
    exit 0
  fi
  echo "apt-get failed, attempt $attempt of 3" >&2
  sleep 10
done
exit 1
