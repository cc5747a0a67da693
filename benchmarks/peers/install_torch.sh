#!/bin/sh
# A plain PyTorch loop.
exec "$(dirname "$0")/install.sh" torch torch==2.13.0 numpy==2.4.6
