#!/bin/bash
# PID 1 of a lab host: sets the host up from /lab (read-only), starts its daemons, reaps orphans.
# Restarting the container is a reboot: /run is emptied and the boot id is a new one.
# Environment: LAB_ENGINE=1|0, LAB_CDI=1|0, LAB_PODMAN=1|0, LAB_USERS="name:uid …", LAB_MTU, LAB_CGROUP, LAB_SHARE=server:/volume or none,
# LAB_ROUTER=address or none.
set -u

find /run -mindepth 1 -maxdepth 1 -exec rm -rf {} + 2>/dev/null
rm -rf /tmp/storage-run-*  # podman's, without root and logind: of another boot it is refused
mkdir -p /run/sshd /run/lock

cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id

mkdir -p /etc/ssl/certs
cp -r --remove-destination /lab-certs/. /etc/ssl/certs/
cp /lab/pip.conf /etc/pip.conf

if [ -e /lab/libnvidia-ml.so.1 ] && [ -s /etc/mlbox-lab/gpus ]; then
  install -m 644 /lab/libnvidia-ml.so.1 /usr/lib/x86_64-linux-gnu/
  ldconfig
fi

if [ "$LAB_ENGINE" = 0 ]; then
  rm -f /usr/bin/docker* /usr/sbin/dockerd /usr/bin/containerd* /usr/bin/ctr /usr/sbin/runc /usr/bin/runc
  getent group docker >/dev/null && groupdel docker
fi

for entry in $LAB_USERS; do
  user=${entry%:*} uid=${entry#*:}
  id "$user" >/dev/null 2>&1 || useradd --create-home --uid "$uid" --shell /bin/bash "$user"
  if [ "$LAB_ENGINE" = 1 ] && { [ "$user" = ada ] || [ "$user" = noisy ]; }; then
    usermod --append --groups docker "$user"
  fi
  home=$(getent passwd "$user" | cut -d: -f6)
  install -d -m 700 -o "$user" -g "$user" "$home/.ssh"
  install -m 600 -o "$user" -g "$user" /lab/authorized_keys "$home/.ssh/authorized_keys"
done
install -m 644 -o noisy -g noisy /lab/noisy.bashrc /home/noisy/.bashrc
if [ -d /opt/python2/bin ] && ! grep -q python2 /home/ada/.bashrc; then
  # Debian's bash reads ~/.bashrc for `ssh HOST CMD` too. (SetEnv in a Match block of sshd 8.4 does nothing.)
  sed -i '1i PATH=/opt/python2/bin:$PATH' /home/ada/.bashrc
fi

rm -f /etc/ssh/ssh_host_*
install -m 600 /lab/ssh_host_ed25519_key /etc/ssh/
install -m 644 /lab/ssh_host_ed25519_key.pub /etc/ssh/
install -D -m 644 /lab/sshd.conf /etc/ssh/sshd_config.d/lab.conf
install -m 644 /lab/banner /etc/ssh/banner.noisy

if [ -n "${LAB_ROUTER:-}" ]; then
  # The way out is the router's; in comes nobody, not even from the same network.
  ip route replace default via "$LAB_ROUTER"
  iptables -A INPUT -i eth0 -m conntrack --ctstate NEW,INVALID -j DROP
fi

if [ -n "${LAB_SHARE:-}" ]; then
  mkdir -p /share
  for _ in $(seq 20); do
    mount -t glusterfs "$LAB_SHARE" /share && break
    sleep 0.5
  done
  if [ -d /lab-sources ] && mountpoint -q /share; then
    mkdir -p /share/sources
    mount --bind /lab-sources /share/sources
  fi
fi

/usr/sbin/sshd
command -v cron >/dev/null && cron

if [ "$LAB_ENGINE" = 1 ]; then
  install -m 755 /lab/hook.py /usr/bin/nvidia-container-runtime-hook
  features={}
  if [ "$LAB_CDI" = 1 ] && [ -s /etc/mlbox-lab/gpus ]; then
    features='{"cdi": true}'
    mkdir -p /etc/cdi
    /usr/bin/nvidia-container-runtime-hook spec >/etc/cdi/nvidia.json
  fi
  mkdir -p /etc/docker
  printf '{"mtu": %s, "cgroup-parent": "%s", "storage-driver": "overlay2", "features": %s}\n' \
    "$LAB_MTU" "$LAB_CGROUP" "$features" >/etc/docker/daemon.json
  # Docker 26 refuses a network without IPv6's sysctls, which are read-only here.
  export DOCKER_ALLOW_IPV6_ON_IPV4_INTERFACE=1
  dockerd >/var/log/dockerd.log 2>&1 &
fi

if [ "$LAB_PODMAN" = 1 ]; then
  # Without systemd there is neither its journal nor its manager of control groups; SYS_RESOURCE is missing here, so
  # no limit can be raised; /proc/sys is read-only, so no network of a container's own; crun wants pure cgroups v2.
  # Storage is on a filesystem that an overlay can stand on, for root and for the others.
  mkdir -p /etc/containers/registries.conf.d
  printf '%s\n' '[containers]' 'default_ulimits = ["nofile=20000:20000", "nproc=1000:1000"]' 'netns = "host"' \
    '[engine]' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' 'runtime = "runc"' \
    >/etc/containers/containers.conf
  printf '%s\n' '[storage]' 'driver = "overlay"' 'runroot = "/run/containers/storage"' \
    'graphroot = "/var/lib/containers/storage"' \
    'rootless_storage_path = "/var/lib/containers/user/$USER"' >/etc/containers/storage.conf
  for port in 5000 5002; do
    printf '%s\n' '[[registry]]' "location = \"localhost:$port\"" 'insecure = true'
  done >/etc/containers/registries.conf.d/lab.conf
  mkdir -p /var/lib/containers/user && chmod 1777 /var/lib/containers/user
  # A user namespace may mount /proc and /sys only where these are to be seen whole somewhere.
  install -d -m 700 /run/whole && mkdir /run/whole/proc /run/whole/sys
  mount -t proc proc /run/whole/proc
  mount -t sysfs sysfs /run/whole/sys
  mount --make-shared /
fi

trap 'exit 0' TERM
while :; do
  sleep 3600 &
  wait $!
done
