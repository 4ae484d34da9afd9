"""What is measured: `make bench` prints every table, `python -m bench NAME` one."""
