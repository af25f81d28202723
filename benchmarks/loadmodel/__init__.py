"""What fleets of some sizes ask of the suite: counted, calculated from measurements, simulated."""
