#!/bin/sh
# wget of busybox, as far as the health checks of docker-compose.yml use it: the address comes last.
for address; do :; done
exec python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=3)' "$address"
