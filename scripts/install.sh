#!/bin/sh
# Installs what `cargo xtask build` made: the program, the boot assets, the systemd unit.
# DESTDIR, as for make, puts them below another root.
set -eu
cd "$(dirname "$0")/.."
to="${DESTDIR:-}"
install -D -m 755 target/release/bridgehead "$to/usr/bin/bridgehead"
install -D -m 644 scripts/bridgehead.service "$to/lib/systemd/system/bridgehead.service"
rm -rf "$to/usr/share/bridgehead"
mkdir -p "$to/usr/share" "$to/etc/bridgehead"
cp -R target/assets "$to/usr/share/bridgehead"
echo "installed; write /etc/bridgehead/config.toml (docs/configuration.md), then: systemctl enable --now bridgehead"
