#!/usr/bin/env bash
# Builds the Debian package from a binary that exists: the binary, the systemd unit, settings, manual pages, shell
# completions, licences.
#
#   deploy/debian/build.sh BINARY OUT [VERSION]
#
# Writes OUT/blip-server_VERSION-1_ARCH.deb. VERSION is that of Cargo.toml unless it is given, as for a nightly build. The
# package is for the architecture of this machine, and the binary must have been built on the oldest release of Debian
# or Ubuntu that shall install it, because it needs the C library of the build machine or a newer one.
#
# Needs cargo-deb (`cargo install --locked cargo-deb@3.8.0`), dpkg-shlibdeps (Debian package dpkg-dev), which finds the
# libraries that the package depends on, and cargo with the downloaded dependencies (`cargo fetch --locked`).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
binary=$(realpath "$1") out=$2 version=${3:-}
mkdir -p "$out"
out=$(realpath "$out")
cd "$root"

# cargo-deb takes the binary, and the paths in Cargo.toml that begin with target/release, from this folder.
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
export CARGO_TARGET_DIR=$target
files=$target/release/package
mkdir -p "$files/man"
cp "$binary" "$target/release/blip-server"
"$binary" man "$files/man" >/dev/null
gzip --no-name --best "$files"/man/*.1
gzip --no-name --best <CHANGELOG.md >"$files/changelog.gz"
for shell in bash zsh fish; do
  "$binary" completions $shell >"$files/blip-server.$shell"
done
triple=$(rustc -vV | sed -n 's/^host: //p')
.ci/release/licences.py "$triple" "$files/THIRD-PARTY-LICENCES"
[ -n "$version" ] || version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# In Debian's order a pre-release comes before its release if the hyphen is a tilde.
debian=${version/-/\~}-1
# The format that Debian's tools read; the real changelog is beside it.
gzip --no-name --best >"$files/changelog.Debian.gz" <<CHANGELOG
blip-server ($debian) unstable; urgency=medium

  * See /usr/share/doc/blip-server/changelog.gz.

 -- blip-server contributors <blip-server@localhost>  $(date -R -d "@$(git log -1 --format=%ct)")
CHANGELOG
# Tests do not need the smallest package.
cargo-deb --no-build --no-strip ${DEB_FAST:+--fast} --deb-version "$debian" --output "$out/" >&2
ls "$out"/blip-server_"$debian"_*.deb
