#!/bin/sh
# Google's FedJAX.
exec "$(dirname "$0")/install.sh" fedjax fedjax==0.0.17 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
