#!/bin/sh
# Names or installs what a bare Linux machine lacks. Rust, Go and git are the user's to bring; Debian packages we install as root.
# Arguments: programs (and packages) that are needed besides; `demo` leaves out what only the tests need.
set -eu
for tool in cargo go git; do
  command -v "$tool" >/dev/null 2>&1 || {
    echo "stowage needs $tool, which is not on the PATH. Install Rust (1.95 or newer), Go (1.26.6 or newer) and git, then run this again." >&2
    exit 1
  }
done
missing=""
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"; }
need gcc gcc
need pkg-config pkg-config
need ip iproute2
need nft nftables
need openssl openssl
need curl curl
need strip binutils
need python3 python3
need unshare util-linux
tests=yes
for more in "$@"; do
  if [ "$more" = demo ]; then tests=no; else need "$more" "$more"; fi
done
if [ "$tests" = yes ]; then
  need node nodejs
  need npm npm
  need promtool prometheus
  need chromium chromium
fi
[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"
[ -x /bin/busybox ] || missing="$missing busybox-static"
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv python3-pip"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "stowage needs these packages (names are Debian's):$missing. Install them, then run this again." >&2
  exit 1
fi
echo "installing$missing"
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
# shellcheck disable=SC2086  # a list of packages
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null
