"""``covey demo``: a whole federation on one machine, over HTTPS."""
