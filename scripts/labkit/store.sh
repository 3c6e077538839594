#!/bin/bash
# PID 1 of the share's server: one GlusterFS volume, distributed over folders in /bricks, where files are
# ext4's. After a restart glusterd starts the volume by itself.
# Environment: LAB_ADDRESS, LAB_VOLUME, LAB_BRICKS.
set -u

rm -rf /run/ready /run/gluster /run/glusterd*
mkdir -p /run/gluster
glusterd --no-daemon --log-level WARNING &

until gluster --mode=script volume list >/dev/null 2>&1; do sleep 0.2; done
if ! gluster --mode=script volume info "$LAB_VOLUME" >/dev/null 2>&1; then
  bricks=()
  for ((i = 1; i <= LAB_BRICKS; i++)); do
    mkdir -p "/bricks/$i"
    bricks+=("$LAB_ADDRESS:/bricks/$i")
  done
  # By address: no name has to be known anywhere. force: the bricks are on the system's disk.
  gluster --mode=script volume create "$LAB_VOLUME" "${bricks[@]}" force || exit 1
  gluster --mode=script volume start "$LAB_VOLUME" || exit 1
fi
touch /run/ready

trap 'exit 0' TERM
while :; do
  sleep 3600 &
  wait $!
done
