"""EST as a client: operations, bootstrap, keys, trust anchors, proof of use."""
