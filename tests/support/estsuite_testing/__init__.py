"""What the tests of the suite share: running services, peers, linters and builders."""
