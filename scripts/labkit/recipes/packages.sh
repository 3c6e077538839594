# Adds $PACKAGES to a Debian system.
set -eu
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
apt-get -q update
apt-get -qy install --no-install-recommends $PACKAGES
rm -rf /usr/sbin/policy-rc.d /var/cache/apt/* /var/lib/apt/lists/* /var/log/apt
