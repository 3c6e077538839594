"""The lab: real sshd, cron and Docker on hosts that are containers; only the NVIDIA driver is false.

Each host is a container of an outer Docker engine, with an inner engine of its own. `cli.py` is the
way in; tests may import `labkit.gpus` (set_gpus and friends) and `labkit.inventory`.
"""
