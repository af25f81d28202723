"""EST client, renewal agent and operator tool."""
