"""What runs on a GPU host: standard library, nvidia-ml-py and psutil only."""
