"""What runs inside a session: starts Jupyter, VS Code and sshd, and says when each answers."""
