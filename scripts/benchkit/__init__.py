"""What `make bench` measures: one file per part, with what they share in measure.py and laptop.py."""
