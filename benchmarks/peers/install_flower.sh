#!/bin/sh
# Flower, with its Ray simulation engine.
exec "$(dirname "$0")/install.sh" flower 'flwr[simulation]==1.41.0' torch==2.13.0 numpy==2.4.6
