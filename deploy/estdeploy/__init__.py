"""What the deployment files need besides themselves: settings, secrets, NATS users, checks."""
