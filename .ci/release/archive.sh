#!/usr/bin/env bash
# Packs a release archive: the binary with licences, README, changelog, settings, manual pages, shell completions, the
# systemd unit and the SBOM.
#
#   .ci/release/archive.sh BINARY SBOM x86_64-unknown-linux-gnu OUT
#
# Writes OUT/blip-server-VERSION-TARGET.tar.gz. The same files give the same bytes: names are sorted, and times are those
# of the commit. macOS has GNU tar as gtar.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
binary=$(realpath "$1") sbom=$(realpath "$2") target=$3 out=$4
mkdir -p "$out"
out=$(realpath "$out")
cd "$root"

version=$("$binary" --version | cut -d ' ' -f 2)
name=blip-server-$version-$target
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/$name/man" "$folder/$name/completions"
cp "$binary" LICENSE-APACHE LICENSE-MIT README.md CHANGELOG.md SECURITY.md "$folder/$name/"
cp config/default.toml "$folder/$name/blip-server.toml"
cp "$sbom" "$folder/$name/blip-server.cdx.json"
case $target in *linux*) cp deploy/blip-server.service "$folder/$name/" ;; esac
.ci/release/licences.py "$target" "$folder/$name/THIRD-PARTY-LICENCES"
"$binary" man "$folder/$name/man" >/dev/null
for shell in bash zsh fish; do
  "$binary" completions $shell >"$folder/$name/completions/blip-server.$shell"
done
chmod -R u=rwX,go=rX "$folder/$name"
tar=$(command -v gtar || command -v tar)
"$tar" --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
  --directory "$folder" "$name" | gzip --no-name --best >"$out/$name.tar.gz"
echo "$out/$name.tar.gz"
