#!/bin/sh
# What a Docker node runs: an engine that answers the appliance alone, in TLS with a certificate on both sides.
# pxe-init puts this boot's key and certificates into /run, which is memory.
set -e
tls=/run/bridgehead
data=/var/lib/docker

# A storage plan may have mounted a disk there; else all that the engine keeps is gone with the power. The image's own
# root won't do: it is an overlay, and the engine's layers are overlays, which can't lie upon one.
grep -q " $data " /proc/mounts || mount -t tmpfs -o mode=0710 docker $data

# The kernel asks for all others by itself.
modprobe -a overlay br_netfilter || echo 'some modules are missing; containers may lack a network' >&2

ulimit -n 1048576 || true
exec dockerd --host="tcp://$BRIDGEHEAD_ADDRESS:2376" --data-root=$data \
    --tlsverify --tlscacert=$tls/ca.pem --tlscert=$tls/cert.pem --tlskey=$tls/key.pem \
    --log-driver=json-file --log-opt max-size=10m --log-opt max-file=2
