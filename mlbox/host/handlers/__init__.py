"""One file per verb, named as in client/commands."""
