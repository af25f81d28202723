"""What the suite is built from: bill of materials, rules for the lock, digests of images."""
