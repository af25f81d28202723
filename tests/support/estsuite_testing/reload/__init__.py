"""Servers of docs/onboarding that reload their certificate while clients use them."""
