"""Dashboards, console pages and Kubernetes objects for monitoring, made from one description."""
