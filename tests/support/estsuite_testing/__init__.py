"""What the tests of the suite share: running services, peers, judges and builders."""
