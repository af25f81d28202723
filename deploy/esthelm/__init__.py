"""The Helm chart deploy/helm/estsuite, made from what Kustomize renders (ADR 0076)."""
