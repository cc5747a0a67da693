#!/bin/sh
# Apple's pfl-research.
exec "$(dirname "$0")/install.sh" pfl pfl==0.6.0 torch==2.13.0 numpy==2.4.6
