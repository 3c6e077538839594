#!/bin/bash
# PID 1 of the router between the lab's network and a private one: who is inside comes out in the router's name
# (NAT), and from outside nobody comes in. Environment: LAB_PRIVATE (the subnet).
set -u

until ip -o -4 addr | grep -q " ${LAB_PRIVATE%.*}\\."; do sleep 0.1; done
iptables -P FORWARD DROP
iptables -A FORWARD -s "$LAB_PRIVATE" -j ACCEPT
iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -t nat -A POSTROUTING -s "$LAB_PRIVATE" ! -d "$LAB_PRIVATE" -j MASQUERADE
touch /run/ready

trap 'exit 0' TERM
while :; do
  sleep 3600 &
  wait $!
done
