"""HTTP as est-frontend speaks it: exchange, responses, server."""
