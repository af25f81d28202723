"""Campaigns: renew many certificates before their time, at a pace."""
