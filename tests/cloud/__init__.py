"""A real OpenStack on one machine: for the tests, and for users to rehearse on."""
