#!/bin/sh
# Install what some tests need beyond Python and make, from Debian's packages: promtool, Node, curl. Needs root.
# Elsewhere those tests skip and say what to install.
set -eu

missing=""
for pair in promtool:prometheus node:nodejs npm:npm curl:curl; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -n "$missing" ] || exit 0
echo "attend: installing$missing"

# Packages may start what they install; a policy keeps them from it while this runs.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o Acquire::Retries=5 update
# shellcheck disable=SC2086 # a list of names
apt-get -qq -o Acquire::Retries=5 install --yes --no-install-recommends $missing >/dev/null
