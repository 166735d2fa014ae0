#!/bin/sh
# The long form of the image URL attacks where it matters most: in a network namespace whose loopback interface owns the
# metadata address, private ones and other special ones, with a canary on port 80 of each. Nothing else is reachable in
# there, and nothing of it is seen outside. Needs unprivileged user namespaces (or root) and iproute2.
#
#     tests/robustness/ssrf/namespace.sh
#
# CARGO names another cargo. Dependencies have to be downloaded already.
set -eu
cd "$(dirname "$0")/../../.."

if [ "${1:-}" != inside ]; then
    ${CARGO:-cargo} test --release --locked --test it --no-run
    exec unshare --user --map-root-user --net "$0" inside
fi

ip link set lo up
for address in 169.254.169.254 169.254.170.2 10.0.0.1 172.16.0.1 192.168.0.1 100.64.0.1 100.100.100.200 192.0.0.192 \
    192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 168.63.129.16; do
    ip address add "$address/32" dev lo
done
for address in fd00:ec2::254 fd20:ce::254 fc00::1 fec0::1 100::1 2001:db8::1 3fff::1 5f00::1 ::169.254.169.254 \
    ::ffff:0:a9fe:a9fe 64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe 2002:a9fe:a9fe::1 2001:0:808:808::5601:5601 \
    2606:4700::5efe:a9fe:a9fe 2606:4700::200:5efe:a9fe:a9fe; do
    ip address add "$address/128" dev lo nodad
done
exec ${CARGO:-cargo} test --release --locked --offline --test it -- --ignored --nocapture \
    robustness::ssrf::long_in_a_namespace
